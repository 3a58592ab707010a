"""Whatever arrives, whenever, under whatever limits: every reply is the plain loop's, and nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tiny_engine_model import PlainLoop, TinyModel, new_tiny_model

from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats

STOP = 3
CONTEXT = 40


@dataclass(frozen=True)
class Arrival:
    prompt: list[int]
    params: SamplingParams
    after: int
    """Steps since the arrival before."""
    cancel_after: int | None
    """Steps from arrival to cancel."""


COMMON = {
    "max_tokens": st.integers(1, 25),
    "temperature": st.sampled_from([0.0, 0.0, 1.0, 2.0]),
    "repetition_penalty": st.sampled_from([1.0, 1.3]),
    "seed": st.integers(0, 2**63 - 1),
    "stop_token_ids": st.sampled_from([(), (1, 5)]),
    "priority": st.sampled_from([0, 0, 1, -3]),
    "owner": st.sampled_from(["", "a", "b"]),
    "cache_salt": st.sampled_from(["", "", "s"]),
    "dry_multiplier": st.sampled_from([0.0, 1.0]),
    "frequency_penalty": st.sampled_from([0.0, 0.3]),
}
PARAMS = st.builds(
    SamplingParams,
    **COMMON,
    top_k=st.sampled_from([0, 7]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.02]),
    typical_p=st.sampled_from([1.0, 0.8]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
) | st.builds(SamplingParams, **COMMON, mirostat_tau=st.just(3.0))
BEGINNINGS = [[], [7], [5, 4, 3, 2, 1, 0, 9, 8, 7, 6], [5, 4, 3, 2, 1, 0, 9, 8, 7, 6, 60, 59, 58, 57]]
PROMPTS = st.builds(
    lambda beginning, end: beginning + end,
    st.sampled_from(BEGINNINGS),
    st.lists(st.integers(0, 60), min_size=1, max_size=15),
)
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        prompt=PROMPTS,
        params=PARAMS,
        after=st.sampled_from([0, 0, 0, 1, 2, 5]),
        cancel_after=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(4, 20),
    block_size=st.sampled_from([1, 4, 10]),
    max_batch_tokens=st.sampled_from([1, 2, 5, 16, 512]),
    max_sequences=st.sampled_from([1, 3, 10]),
    drafts=st.sampled_from([(0, None), (0, None), (3, None), (1, 0), (4, 1)]),
    decode_graphs=st.booleans(),
)
def test_every_reply_is_the_plain_loops(
    tiny_model: TinyModel,
    plain_loop: PlainLoop,
    arrivals: list[Arrival],
    num_blocks: int,
    block_size: int,
    max_batch_tokens: int,
    max_sequences: int,
    drafts: tuple[int, int | None],
    decode_graphs: bool,
) -> None:
    num_drafts, draft_seed = drafts
    log: list[StepStats] = []
    engine = Engine(
        tiny_model,
        stop_ids=(STOP,),
        max_context=CONTEXT,
        block_size=block_size,
        cache_tokens=max(num_blocks * block_size, CONTEXT + block_size),
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        num_drafts=num_drafts,
        draft_model=None if draft_seed is None else new_tiny_model(draft_seed),
        decode_graphs=decode_graphs,
        on_step=log.append,
    )
    engine.generate([[1]], SamplingParams(max_tokens=1))
    all_blocks = log[-1].num_free_blocks
    replies: dict[int, list[int]] = {}
    ends: dict[int, str] = {}
    cancels: dict[int, int] = {}
    upcoming, now, due = list(enumerate(arrivals)), 0, arrivals[0].after
    while upcoming or engine.has_unfinished:
        while upcoming and due <= now:
            request, arrival = upcoming.pop(0)
            engine.add(arrival.prompt, arrival.params, request_id=request)
            replies[request] = []
            if arrival.cancel_after is not None:
                cancels[request] = now + arrival.cancel_after
            due += upcoming[0][1].after if upcoming else 0
        for request, when in cancels.items():
            if when == now:
                engine.cancel(request)
        for output in engine.step():
            assert output.request_id not in ends
            replies[output.request_id] += output.token_ids
            if output.finish_reason:
                ends[output.request_id] = output.finish_reason
        now += 1
        assert now < 3000, "no starvation"

    assert set(ends) == set(range(len(arrivals)))
    for request, arrival in enumerate(arrivals):
        expected = plain_loop(arrival.prompt, arrival.params, stop_ids=(STOP,))[: CONTEXT - len(arrival.prompt)]
        if ends[request] == "cancelled":
            assert replies[request] == expected[: len(replies[request])]
        else:
            assert replies[request] == expected
    assert all(stats.num_tokens <= max_batch_tokens and stats.num_sequences <= max_sequences for stats in log)
    engine.generate([[1]], SamplingParams(max_tokens=1))
    assert log[-1].num_free_blocks == all_blocks
    event("preempted" if log[-1].num_preemptions else "not preempted")
    event("shared" if log[-1].num_reused_tokens else "not shared")


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
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=1, logprobs=True, top_logprobs=2, prompt_logprobs=1)
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
