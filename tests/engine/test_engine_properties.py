"""Whatever arrives, whenever, under whatever limits: every reply is the plain loop's, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_arrivals import ARRIVALS, LIMITS, Arrival, check_replies
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine_model import PlainLoop, TinyModel

from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats


@settings(max_examples=60, deadline=None)
@given(arrivals=ARRIVALS, limits=LIMITS, decode_graphs=st.booleans())
def test_every_reply_is_the_plain_loops(
    tiny_model: TinyModel, plain_loop: PlainLoop, arrivals: list[Arrival], limits: dict[str, Any], decode_graphs: bool
) -> None:
    check_replies(tiny_model, plain_loop, arrivals, **limits, decode_graphs=decode_graphs)


def test_replies_survive_preemption(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, max_context=40, cache_tokens=48, block_size=4, on_step=log.append)
    prompts = [[i, 2 * i, 3 * i] for i in range(1, 7)]
    each = [SamplingParams(max_tokens=20, temperature=float(i % 2), seed=i) for i in range(6)]
    completions = engine.generate(prompts, each)
    assert log[-1].num_preemptions >= 3
    assert max(stats.num_sequences for stats in log) >= 3
    assert [c.token_ids for c in completions] == [plain_loop(p, s) for p, s in zip(prompts, each, strict=True)]


@pytest.mark.parametrize("max_batch_tokens", [1, 3])
def test_the_first_to_arrive_is_never_held_up(tiny_model: TinyModel, max_batch_tokens: int) -> None:
    engine = Engine(tiny_model, max_batch_tokens=max_batch_tokens, cache_tokens=64, block_size=4)
    first = engine.add([1, 2, 3], SamplingParams(max_tokens=6))
    for i in range(10):
        engine.add([i] * 20, SamplingParams(max_tokens=20))
    outputs = [engine.step() for _ in range(-(-3 // max_batch_tokens) - 1 + 6)]
    assert [o.finish_reason for step in outputs for o in step if o.request_id == first][-1] == "length"


def test_samples_of_one_prompt_share_its_blocks(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, block_size=4, on_step=log.append)
    params = SamplingParams(n=8, temperature=1.0, seed=4, max_tokens=6)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    completions = engine.generate([prompt], params)
    assert [c.token_ids for c in completions] == [plain_loop(prompt, each) for each in params.samples()]
    assert len({tuple(c.token_ids) for c in completions}) > 4
    assert [(s.num_sequences, s.num_tokens) for s in log[:3]] == [(1, 9), (8, 8), (8, 8)]
    assert log[-1].num_reused_tokens == 7 * 8


def test_a_later_request_goes_on_from_what_an_earlier_one_left(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, block_size=4, on_step=log.append)
    params = SamplingParams(max_tokens=10)
    prompt = [3, 1, 4, 1, 5]
    [first] = engine.generate([prompt], params)
    follow_up = [*prompt, *first.token_ids, 8, 8]
    log.clear()
    [second] = engine.generate([follow_up], params)
    assert second.token_ids == plain_loop(follow_up, params)
    assert log[0].num_tokens == len(follow_up) - 12
    for salted in (replace(params, cache_salt="someone"), replace(params, cache_salt="else")):
        log.clear()
        assert engine.generate([follow_up], salted)[0].token_ids == second.token_ids
        assert log[0].num_tokens == len(follow_up)


def test_many_that_wait_run_together_whatever_they_share(tiny_model: TinyModel) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, block_size=4, on_step=log.append)
    beginning = [i * 7 % 61 for i in range(24)]
    engine.generate([[*beginning, i] for i in range(12)], SamplingParams(max_tokens=10))
    assert all(stats.num_sequences >= 8 for stats in log[1:-1])


def test_logprobs_of_prompt_and_reply_are_the_models_whatever_the_chunks(tiny_model: TinyModel) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    rules = {"temperature": 0.7, "top_k": 9, "repetition_penalty": 1.5, "logit_bias": {7: 3.0}, "banned_token_ids": [9]}
    params = SamplingParams(max_tokens=5, seed=1, logprobs=True, top_logprobs=2, prompt_logprobs=1, **rules)
    for options in ({}, {"max_batch_tokens": 3}, {"block_size": 4, "cache_tokens": 24, "max_context": 20}):
        engine = Engine(tiny_model, **options)
        engine.generate([prompt], SamplingParams(max_tokens=1))
        first, _ = engine.generate([prompt, prompt[::-1]], params)
        ids = [*prompt, *first.token_ids]
        expected = engine.logits(ids).log_softmax(-1)
        got = [*first.prompt_logprobs, *first.logprobs]
        assert [logprob.token_id for logprob in got] == ids[1:]
        for place, logprob in enumerate(got):
            assert logprob.logprob == pytest.approx(float(expected[place, ids[place + 1]]), abs=1e-4)
            assert logprob.top[0][0] == int(expected[place].argmax())
