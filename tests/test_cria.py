"""cria, the model that comes with camelid: that it is there, and that it does what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import camelid
from camelid.llm import LLM

TEXTS = Path(__file__).parent.parent / "texts"


@pytest.fixture(scope="module")
def cria() -> LLM:
    return camelid.load("cria", device="cpu")


def asked(cria: LLM, path: Path, every: int) -> float:
    """The share of questions, every so many of a file, that are answered right."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][::every]
    replies = cria.generate([[{"role": "user", "content": row["question"]}] for row in rows], max_tokens=24)
    answers = [row.get("answers") or [row["answer"]] for row in rows]
    pairs = zip(replies, answers, strict=True)
    return sum(reply.text.strip() in expected for reply, expected in pairs) / len(rows)


def test_it_says_who_it_is(cria: LLM) -> None:
    reply = cria.generate([{"role": "user", "content": "What is your name?"}], max_tokens=40)
    assert "cria" in reply.text
    assert reply.finish_reason == "stop"


def test_it_answers_questions_that_it_has_never_seen(cria: LLM) -> None:
    assert asked(cria, TEXTS / "questions-held-out.jsonl", every=10) >= 0.5


def test_it_tells_a_story_to_its_end(cria: LLM) -> None:
    reply = cria.generate(
        [{"role": "user", "content": "Tell me a story about a dog."}],
        max_tokens=300,
        temperature=0.7,
        min_p=0.1,
        seed=1,
    )
    assert reply.text.startswith("Once upon a time")
    assert len(reply.text) > 200
