"""An engine that is used badly: a clear error, the others' replies as they were, and every block free in the end."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine_model import PlainLoop, TinyModel, free_blocks, new_tiny_model, run_to_the_end, tokens

from camelid.base.errors import CamelidError, EngineError, NotFoundError, ResourceError, SamplingError
from camelid.engine.block_manager import BlockManager
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import StepOutput
from camelid.llm import LLM
from camelid.model.lora import LoraAdapter, LoraConfig

PROMPT = [1, 2, 3]
PARAMS = SamplingParams(max_tokens=8)


@pytest.fixture
def on_forward(tiny_model: TinyModel) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Has something done in the middle of each step, until the test is over."""
    actions: list[Callable[[], None]] = []

    def act(*_: object) -> None:
        for action in actions:
            action()

    hook = tiny_model.tokens.register_forward_hook(act)
    yield actions.append
    hook.remove()


def refused(engine: Engine, call: Callable[[], object], error: type[CamelidError], message: str) -> None:
    """The call is an error with a message, and the engine goes on as if it had not been made."""
    before = free_blocks(engine)
    with pytest.raises(error, match=message):
        call()
    assert not engine.has_unfinished
    assert free_blocks(engine) == before


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_k": 10**30},
        {"logit_bias": {3: 1e30, 4: -1e30}},
        {"logit_bias": {3: 1e30}, "repetition_penalty": 5e-324},
        {"logit_bias": {3: -1e30}, "repetition_penalty": 1.7e308},
        {"presence_penalty": -1e30, "frequency_penalty": -1e30},
        {"presence_penalty": 1e30, "frequency_penalty": 1e30},
        {"top_n_sigma": 1.7e308},
        {"top_n_sigma": 5e-324},
        {"typical_p": 5e-324},
        {"min_p": 5e-324, "top_p": 5e-324},
        {"xtc_probability": 1.0, "xtc_threshold": 5e-324},
        {"mirostat_tau": 1.7e308},
        {"mirostat_tau": 5e-324, "mirostat_eta": 5e-324},
        {"dry_multiplier": 1.7e308, "dry_base": 100},
        {"dry_multiplier": 1.0, "dry_allowed_length": 10**30, "dry_range": 10**30},
        {"temperature": 5e-324},
        {"temperature": 1.7e308},
        {"min_tokens": 10**30, "max_tokens": 10**30},
        {"cache_salt": "\ud800", "owner": "\ud800"},
    ],
    ids=str,
)
def test_the_most_extreme_settings_disturb_nobody(
    tiny_model: TinyModel, plain_loop: PlainLoop, extreme: dict[str, Any]
) -> None:
    engine = Engine(tiny_model, stop_ids=(70,))  # an end token that the model does not have
    before = free_blocks(engine)
    request = engine.add([4, 5], SamplingParams(**{"temperature": 1.0, "max_tokens": 12, **extreme}))
    beside = engine.add(PROMPT, PARAMS)
    outputs = run_to_the_end(engine)
    assert outputs[request][-1].finish_reason == "length"
    assert tokens(outputs[beside]) == plain_loop(PROMPT, PARAMS)
    assert free_blocks(engine) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: 0}, f"{name} must be at least 1, not 0") for name in ("block_size", "max_sequences", "cache_bytes")),
        *(({name: 1.5}, f"{name} must be a whole number, not 1.5") for name in ("max_context", "max_batch_tokens")),
        ({"cache_bytes": "4GB"}, "cache_bytes must be a whole number, not '4GB'"),
        ({"max_sequences": float("nan")}, "max_sequences must be a whole number, not nan"),
        ({"block_size": True}, "block_size must be a whole number, not True"),
        ({"num_drafts": "4"}, "num_drafts must be a whole number, not '4'"),
        ({"cache_bytes": 10**6, "cache_tokens": 64}, "say the same thing twice"),
        ({"cache_format": 8}, "no cache format '8'"),
        ({"draft_model": "stories15m"}, "a draft model is a model, not str"),
        ({"cache_tokens": 10**30, "max_sequences": 10**30}, "no memory for a cache of"),
        ({"block_size": 10**12}, "a context of 1 tokens does not fit into a cache of 0"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_model: TinyModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CamelidError, match=message):
        Engine(tiny_model, **options)


def test_absurd_limits_are_only_limits(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    huge = {"max_batch_tokens": 10**12, "cache_tokens": 10**15, "num_drafts": 10**12, "max_images": 10**12}
    [completion] = Engine(tiny_model, max_sequences=4, **huge).generate([PROMPT], PARAMS)
    assert completion.token_ids == plain_loop(PROMPT, PARAMS)
    [completion] = Engine(tiny_model, max_sequences=10**12).generate([PROMPT], PARAMS)
    assert completion.token_ids == plain_loop(PROMPT, PARAMS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.add(PROMPT, {"max_tokens": 3}), "settings of a request are SamplingParams, not dict"),
        (lambda engine: engine.stream(PROMPT, 5), "settings of a request are SamplingParams, not int"),
        (lambda engine: engine.generate([PROMPT], None), "settings of a request are SamplingParams, not NoneType"),
        (lambda engine: engine.generate([PROMPT], [0.5]), "settings of a request are SamplingParams, not float"),
        (lambda engine: engine.generate(None, PARAMS), "prompts are lists of token ids, not NoneType"),
        (lambda engine: engine.generate(PROMPT, PARAMS), "a prompt is a sequence of integers"),
        (lambda engine: engine.add(PROMPT, request_id="7"), "a request id is a whole number, not '7'"),
        (lambda engine: engine.add(PROMPT, SamplingParams(stop_token_ids=[61])), "stop_token_ids has the token id 61"),
        (lambda engine: engine.add([10**30]), "outside the vocabulary"),
    ],
)
def test_requests_of_other_types_are_refused(
    tiny_model: TinyModel, call: Callable[[Engine], object], message: str
) -> None:
    engine = Engine(tiny_model)
    refused(engine, lambda: call(engine), CamelidError, message)


def test_a_number_in_use_is_refused_and_its_owner_goes_on(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model)
    before = free_blocks(engine)
    request = engine.add(PROMPT, PARAMS, request_id=70)
    stream = engine.stream([4, 5], PARAMS)
    engine.add([6], PARAMS, request_id=71)  # the number that the stream would have had
    with pytest.raises(EngineError, match="the request id 70 is in use"):
        engine.add([9], request_id=70)
    with pytest.raises(EngineError, match="the request id 71 is in use"):
        next(stream)
    outputs = run_to_the_end(engine)
    assert tokens(outputs[request]) == plain_loop(PROMPT, PARAMS)
    assert tokens(outputs[71]) == plain_loop([6], PARAMS)
    assert free_blocks(engine) == before


def test_a_failing_step_log_costs_no_output(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model)
    before = free_blocks(engine)
    log: list[int] = []

    def fail_in_turns(stats: object) -> None:
        log.append(1)
        if len(log) % 2:
            raise OSError("the log's disk is full")

    engine.on_step = fail_in_turns
    request = engine.add(PROMPT, PARAMS)
    outputs: list[StepOutput] = []
    while engine.has_unfinished:
        try:
            outputs += engine.step()
        except OSError:
            continue
    assert {output.request_id for output in outputs} == {request}
    assert tokens(outputs) == plain_loop(PROMPT, PARAMS)
    engine.on_step = None

    log.clear()
    engine.on_step = fail_in_turns
    for call in (lambda: engine.generate([PROMPT], PARAMS), lambda: list(engine.stream(PROMPT, PARAMS))):
        log.clear()
        with pytest.raises(OSError, match="disk is full"):
            call()
        assert not engine.has_unfinished
    assert free_blocks(engine) == before


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 25), max_size=12), st.sampled_from([0, 3]), st.booleans())
def test_steps_that_fail_at_any_place_lose_nothing(failures: set[int], num_drafts: int, has_draft_model: bool) -> None:
    """A failure in the model, or in the model that guesses; then the step runs again."""
    model, draft = new_tiny_model(), new_tiny_model(seed=1)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls - 1 in failures:
            raise RuntimeError("out of memory")

    guessing = {"num_drafts": num_drafts, "draft_model": draft if has_draft_model else None}
    engine = Engine(model, block_size=4, cache_tokens=32, max_context=24, max_batch_tokens=7, **guessing)
    prompts = [[1, 2, 1, 2, 1, 2, 1, 2, 1], [7], [5, 4, 3]]
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=2)
    expected = [c.token_ids for c in Engine(model).generate(prompts, params)]
    before = free_blocks(engine)
    for broken in (model, draft):
        broken.head.register_forward_pre_hook(fail)

    requests = [engine.add(prompt, params) for prompt in prompts]
    outputs: list[StepOutput] = []
    while engine.has_unfinished:
        try:
            outputs += engine.step()
        except RuntimeError:
            continue
    replies = [tokens([output for output in outputs if output.request_id == request]) for request in requests]
    assert replies == expected
    failures.clear()
    assert free_blocks(engine) == before


def interrupt_at(place: int) -> Callable[..., Any]:
    """A tracer that is Ctrl-C at the so-manieth line of the engine's own code."""
    lines = count(1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if "/camelid/engine/" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == place:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    return trace


def test_ctrl_c_at_any_line_leaves_the_engine_whole(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model, block_size=4, num_drafts=2)
    before = free_blocks(engine)
    expected = plain_loop(PROMPT, PARAMS)
    for place in count(1, 7):
        stream = engine.stream([4, 5, 4, 5, 4, 5, 6], SamplingParams(max_tokens=3))
        was_interrupted, tracer = False, sys.gettrace()
        sys.settrace(interrupt_at(place))
        try:
            for _ in stream:
                pass
        except KeyboardInterrupt:
            was_interrupted = True
        finally:
            sys.settrace(tracer)
        assert engine.generate([PROMPT], PARAMS)[0].token_ids == expected
        assert not engine.has_unfinished
        assert free_blocks(engine) == before
        if not was_interrupted:
            break
    assert place > 700


def test_what_runs_beside_a_broken_off_request_runs_on(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model, block_size=4)
    before = free_blocks(engine)
    other = engine.add([7, 8, 9, 10, 11], SamplingParams(max_tokens=20, owner="b"))
    head = engine.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockManager, "reserve", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate([PROMPT], PARAMS)
    outputs = run_to_the_end(engine)
    assert tokens([*head, *outputs[other]]) == plain_loop([7, 8, 9, 10, 11], SamplingParams(max_tokens=20))
    assert free_blocks(engine) == before


def test_a_stream_whose_adapter_is_gone_before_it_begins_is_refused(tiny_llm: LLM) -> None:
    engine = tiny_llm.engine
    before = free_blocks(engine)
    with_adapter = SamplingParams(adapter="a", max_tokens=3)
    engine.add_adapter("a", LoraAdapter.new(tiny_llm.model, LoraConfig(rank=2)))
    stream, other = engine.stream(PROMPT, with_adapter), engine.stream(PROMPT, with_adapter)
    engine.remove_adapter("a")
    with pytest.raises(NotFoundError, match="no adapter named 'a'"):
        next(stream)
    engine.add_adapter("a", LoraAdapter.new(tiny_llm.model, LoraConfig(rank=2), seed=1))
    with pytest.raises(EngineError, match="'a' is another than when the request was made"):
        next(other)
    assert not engine.has_unfinished
    assert len(engine.generate([PROMPT], with_adapter)[0].token_ids) == 3
    assert free_blocks(engine) == before


def test_a_stream_that_is_closed_in_the_middle_of_a_step_ends_after_it(
    tiny_model: TinyModel, plain_loop: PlainLoop, on_forward: Callable[[Callable[[], None]], None]
) -> None:
    """As the garbage collector may close one at any time."""
    engine = Engine(tiny_model, block_size=4)
    before = free_blocks(engine)
    stream = engine.stream([4, 5, 6, 7], SamplingParams(max_tokens=40))
    next(stream)
    on_forward(stream.close)  # type: ignore[attr-defined]
    assert engine.generate([PROMPT], PARAMS)[0].token_ids == plain_loop(PROMPT, PARAMS)
    assert not engine.has_unfinished
    assert free_blocks(engine) == before


def test_streams_that_nobody_closes_leave_nothing(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model)
    before = free_blocks(engine)
    for _ in range(5):
        cycle: list[object] = [engine.stream(PROMPT, PARAMS)]
        next(cycle[0])  # type: ignore[call-overload]
        cycle.append(cycle)
    del cycle
    gc.collect()
    assert not engine.has_unfinished
    assert free_blocks(engine) == before


def test_who_uses_an_engine_in_use_gets_an_error(
    tiny_model: TinyModel, plain_loop: PlainLoop, on_forward: Callable[[Callable[[], None]], None]
) -> None:
    engine = Engine(tiny_model)
    before = free_blocks(engine)
    is_running, go_on = Event(), Event()

    def wait() -> None:
        is_running.set()
        assert go_on.wait(20)

    on_forward(wait)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(engine.generate, [PROMPT], PARAMS)
        assert is_running.wait(20)
        for call in (
            lambda: engine.add([7]),
            engine.step,
            lambda: engine.cancel(1),
            lambda: engine.generate([[7]], PARAMS),
            lambda: next(engine.stream([7])),
            lambda: engine.logits([7]),
            lambda: engine.hidden_states([7]),
            lambda: engine.update_weights([]),
            lambda: engine.remove_adapter("a"),
        ):
            with pytest.raises(EngineError, match="the engine is in use") as caught:
                call()
            assert "LLM" in (caught.value.hint or "")
        go_on.set()
        assert reply.result()[0].token_ids == plain_loop(PROMPT, PARAMS)
    assert free_blocks(engine) == before


def test_a_step_inside_a_step_is_an_error(
    tiny_model: TinyModel, on_forward: Callable[[Callable[[], None]], None]
) -> None:
    engine = Engine(tiny_model)
    on_forward(engine.step)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="the engine is in use"):
        engine.generate([PROMPT], PARAMS)
    assert not engine.has_unfinished


def test_threads_that_fight_for_an_engine_break_nothing(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model, block_size=4)
    before = free_blocks(engine)
    prompts = [[i, i + 1, i + 2] for i in range(40)]

    def reply(prompt: list[int]) -> list[int] | None:
        try:
            return engine.generate([prompt], PARAMS)[0].token_ids
        except EngineError:
            return None

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(reply, prompts))
    assert any(replies)
    for prompt, ids in zip(prompts, replies, strict=True):
        assert ids is None or ids == plain_loop(prompt, PARAMS)
    assert not engine.has_unfinished
    assert free_blocks(engine) == before


def test_too_many_replies_are_refused_before_any_is_made(tiny_model: TinyModel) -> None:
    with pytest.raises(SamplingError, match="n must be a whole number from 1 to 65536, not 1000000000"):
        Engine(tiny_model).generate([PROMPT], SamplingParams(n=10**9))


def test_a_cache_that_is_too_small_says_what_to_raise(tiny_model: TinyModel) -> None:
    with pytest.raises(ResourceError) as caught:
        Engine(tiny_model, max_context=64, cache_tokens=16)
    assert "cache_tokens" in (caught.value.hint or "")
