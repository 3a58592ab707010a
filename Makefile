# camelid. Two commands: `make chat` sets up and talks to a model, `make test` sets up and runs the tests.
#
#   make fuzz TIMES=100                        damage files of every format, 100 times as long as the tests do
#   make chat PROMPT="Why is the sky blue?"    answer once and exit
#   make chat MODEL=path/or/name               talk to another model
#   make chat TORCH_INDEX_URL=URL              take torch from another package index (a CPU-only one, say)
#   make chat INDEX_URL=URL                    take everything from another package index
#   make chat VENV=path PYTHON=python3.12      use or make another environment; a torch >= 2.11 in it is kept

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TIMES ?= 20
MODEL ?= smollm2-135m-instruct
INDEX_URL ?=
TORCH_INDEX_URL ?=
# Threads that wait asleep lose little on an idle machine and much less on a busy one.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY
# A prompt is text: make must not expand the dollars in it.
override PROMPT := $(value PROMPT)
export PYTHON VENV TORCH INDEX_URL TORCH_INDEX_URL MODEL PROMPT TIMES

.PHONY: help chat test test-all fuzz lint docs package clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

chat:
	@sh scripts/set_up.sh chat
	@"$$VENV/bin/camelid" chat "$$MODEL" $${PROMPT:+--prompt "$$PROMPT"}

test: lint
	@"$$VENV/bin/python" -m pytest -m "not slow and not gpu"

test-all: lint
	@"$$VENV/bin/python" -m pytest -m "not gpu"

fuzz:
	@sh scripts/set_up.sh test
	@CAMELID_FUZZ="$$TIMES" "$$VENV/bin/python" -m pytest -m fuzz

lint:
	@sh scripts/set_up.sh test
	@"$$VENV/bin/python" -m ruff check .
	@"$$VENV/bin/python" -m ruff format --check .
	@"$$VENV/bin/python" -m mypy

docs:
	@sh scripts/set_up.sh test
	@"$$VENV/bin/python" -m camelid.cli.reference docs/reference/cli.md
	@"$$VENV/bin/python" -m camelid.cli.recipe_reference docs/reference/recipes.md

package:
	@sh scripts/set_up.sh test
	@sh scripts/check_package.sh

clean:
	rm -rf build dist
