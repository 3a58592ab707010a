"""Arrivals, limits and what must hold of the replies: drawn by tests on a CPU and on a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import event
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
LIMITS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(4, 20),
        "block_size": st.sampled_from([1, 4, 10]),
        "max_batch_tokens": st.sampled_from([1, 2, 5, 16, 512]),
        "max_sequences": st.sampled_from([1, 3, 10]),
        "drafts": st.sampled_from([(0, None), (0, None), (3, None), (1, 0), (4, 1)]),
    }
)


def check_replies(
    model: TinyModel,
    plain_loop: PlainLoop,
    arrivals: list[Arrival],
    *,
    num_blocks: int,
    block_size: int,
    max_batch_tokens: int,
    max_sequences: int,
    drafts: tuple[int, int | None],
    decode_graphs: bool,
) -> None:
    """Every reply is the plain loop's, and nothing is left behind."""
    num_drafts, draft_seed = drafts
    log: list[StepStats] = []
    engine = Engine(
        model,
        stop_ids=(STOP,),
        max_context=CONTEXT,
        block_size=block_size,
        cache_tokens=max(num_blocks * block_size, CONTEXT + block_size),
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        num_drafts=num_drafts,
        draft_model=None if draft_seed is None else new_tiny_model(draft_seed).to(model.head.weight.device),
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
        expected = plain_loop(arrival.prompt, arrival.params, stop_ids=(STOP,), model=model)
        expected = expected[: CONTEXT - len(arrival.prompt)]
        if ends[request] == "cancelled":
            assert replies[request] == expected[: len(replies[request])]
        else:
            assert replies[request] == expected
    assert all(stats.num_tokens <= max_batch_tokens and stats.num_sequences <= max_sequences for stats in log)
    engine.generate([[1]], SamplingParams(max_tokens=1))
    assert log[-1].num_free_blocks == all_blocks
    event("preempted" if log[-1].num_preemptions else "not preempted")
    event("shared" if log[-1].num_reused_tokens else "not shared")
