"""Guesses save passes and change nothing: neither a reply of a seed nor the distribution of replies."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_engine_model import PlainLoop, TinyModel, new_tiny_model

from camelid.base.errors import EngineError
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.sequence import Sequence
from camelid.engine.speculate import continuation
from camelid.engine.step import StepStats
from camelid.llm import LLM

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=21),
        SamplingParams(max_tokens=21, temperature=1.0, seed=3),
        SamplingParams(max_tokens=21, temperature=1.0, seed=3, top_p=0.9, repetition_penalty=1.2),
        SamplingParams(max_tokens=21, temperature=1.0, seed=3, mirostat_tau=3.0),
    ],
    ids=["greedy", "drawn", "filtered", "mirostat"],
)
def test_a_perfect_draft_is_always_right(tiny_model: TinyModel, plain_loop: PlainLoop, params: SamplingParams) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, draft_model=new_tiny_model(), num_drafts=4, on_step=log.append)
    [completion] = engine.generate([PROMPT], params)
    assert completion.token_ids == plain_loop(PROMPT, params)
    assert log[-1].num_accepted == log[-1].num_drafts == 16
    assert len(log) == 1 + 4


def test_a_draft_that_is_often_wrong_changes_nothing(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    log: list[StepStats] = []
    draft = new_tiny_model()
    with torch.no_grad():
        draft.head.weight += 0.1 * torch.randn(draft.head.weight.shape, generator=torch.Generator().manual_seed(0))
    engine = Engine(tiny_model, draft_model=draft, num_drafts=3, on_step=log.append)
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=5, n=6)
    completions = engine.generate([PROMPT], params)
    assert [c.token_ids for c in completions] == [plain_loop(PROMPT, each) for each in params.samples()]
    assert 0.2 < log[-1].num_accepted / log[-1].num_drafts < 0.95


def test_what_stood_before_is_guessed(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    with torch.no_grad():  # the next token hangs on the last alone, and so comes round
        own_model.positions.weight.zero_()
        for values in own_model.values:
            values.weight.zero_()
    log: list[StepStats] = []
    params = SamplingParams(max_tokens=50)
    [completion] = Engine(own_model, num_drafts=4, on_step=log.append).generate([[1, 2, 3]], params)
    assert completion.token_ids == plain_loop([1, 2, 3], params, model=own_model)
    assert log[-1].num_accepted > 20
    assert len(log) < 30


def test_the_latest_place_of_the_longest_ending_is_continued() -> None:
    def after(ids: list[int]) -> list[int]:
        sequence = Sequence(0, ids[:2], SamplingParams(), seed=0, stop_ids=frozenset(), max_length=99)
        continuation(sequence)
        sequence.token_ids = ids
        return continuation(sequence)

    assert after([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]) == [4, 9, 2, 3, 5, 1, 2, 3]
    assert after([2, 3, 4, 9, 2, 3, 5, 2, 3]) == [5, 2, 3]
    assert after([1, 2, 3, 4]) == []


def test_replies_with_guesses_have_the_models_distribution(tiny_model: TinyModel) -> None:
    tries = 4000
    params = SamplingParams(max_tokens=3, temperature=1.5, top_k=3, n=tries, seed=0)
    engine = Engine(tiny_model, draft_model=new_tiny_model(seed=1), num_drafts=2, max_sequences=256)
    counts = Counter(tuple(c.token_ids) for c in engine.generate([PROMPT], params))
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for reply, probability in expected.items():
            scores = engine.logits([*PROMPT, *reply])[-1] / 1.5
            best = scores.topk(3)
            for token, share in zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True):
                longer[*reply, token] = probability * share
        expected = longer
    assert set(counts) <= set(expected)
    chi_square = sum((counts[reply] - tries * p) ** 2 / (tries * p) for reply, p in expected.items())
    assert chi_square < 54.1  # 99.9th percentile at 26 degrees of freedom


def test_a_grammar_is_followed_through_guesses(tiny_llm: LLM) -> None:
    expected = tiny_llm.generate("ab", regex="(ab){3,9}c", temperature=1.0, seed=1)
    guessing = LLM(tiny_llm.model, tiny_llm.tokenizer, num_drafts=4)
    assert guessing.generate("ab", regex="(ab){3,9}c", temperature=1.0, seed=1) == expected


def test_a_draft_of_another_vocabulary_is_refused(tiny_model: TinyModel, tiny_llm: LLM) -> None:
    with pytest.raises(EngineError, match="cannot guess for one of 61 tokens"):
        Engine(tiny_model, draft_model=tiny_llm.model)
    with pytest.raises(EngineError, match="num_drafts must be at least 0, not -1"):
        Engine(tiny_model, num_drafts=-1)
