"""The engine through its public methods: what comes out, why it ends, and what a user's mistake says."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from tiny_engine_model import PlainLoop, TinyModel, free_blocks, new_tiny_model, run_to_the_end, tokens

from camelid.base.errors import ContextLengthError, EngineError, ResourceError, SamplingError
from camelid.engine.engine import Engine
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import StepOutput
from camelid.engine.step import StepStats
from camelid.model.attention import PackedContext

PROMPTS = [[1, 2, 3], [7], [5, 4, 3, 2, 1, 0, 9, 8], [60, 1]]


def test_completions_equal_the_plain_loop(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    params = SamplingParams(max_tokens=12)
    completions = Engine(tiny_model).generate(PROMPTS, params)
    assert [c.token_ids for c in completions] == [plain_loop(prompt, params) for prompt in PROMPTS]
    assert {c.finish_reason for c in completions} == {"length"}
    assert len({tuple(c.token_ids) for c in completions}) == len(PROMPTS)


def test_each_prompt_may_have_its_own_settings(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    each = [SamplingParams(max_tokens=n + 2, temperature=n / 2, seed=n) for n in range(len(PROMPTS))]
    completions = Engine(tiny_model).generate(PROMPTS, each)
    assert [c.token_ids for c in completions] == [plain_loop(p, s) for p, s in zip(PROMPTS, each, strict=True)]
    with pytest.raises(EngineError, match="4 prompts need as many sampling settings"):
        Engine(tiny_model).generate(PROMPTS, each[:2])


def test_no_prompts_give_no_completions(tiny_model: TinyModel) -> None:
    assert Engine(tiny_model).generate([], SamplingParams()) == []


def test_waiting_prompts_share_one_forward_pass(tiny_model: TinyModel) -> None:
    log: list[StepStats] = []
    Engine(tiny_model, on_step=log.append).generate([[i, i + 1] for i in range(8)], SamplingParams(max_tokens=5))
    assert [(s.num_sequences, s.num_tokens) for s in log] == [(8, 16), (8, 8), (8, 8), (8, 8), (8, 8)]


def test_a_late_request_joins_those_that_run(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, on_step=log.append)
    first = engine.add([1, 2, 3], SamplingParams(max_tokens=6))
    head = [*engine.step(), *engine.step()]
    second = engine.add([4, 5], SamplingParams(max_tokens=6))
    outputs = run_to_the_end(engine)
    assert [(s.num_sequences, s.num_tokens) for s in log[:4]] == [(1, 3), (1, 1), (2, 3), (2, 2)]
    assert tokens([*head, *outputs[first]]) == plain_loop([1, 2, 3], SamplingParams(max_tokens=6))
    assert tokens(outputs[second]) == plain_loop([4, 5], SamplingParams(max_tokens=6))


def test_a_long_prompt_runs_in_chunks_beside_decoding(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    log: list[StepStats] = []
    engine = Engine(tiny_model, max_batch_tokens=8, on_step=log.append)
    short, long = [3, 1], [i * 7 % 61 for i in range(30)]
    ids = [engine.add(prompt, SamplingParams(max_tokens=9)) for prompt in (short, long)]
    outputs = run_to_the_end(engine)
    assert [s.num_tokens for s in log[:6]] == [8, 8, 8, 8, 4, 2]
    for request, prompt in zip(ids, (short, long), strict=True):
        assert tokens(outputs[request]) == plain_loop(prompt, SamplingParams(max_tokens=9))


def test_a_stop_id_ends_the_reply_and_is_not_part_of_it(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    full = plain_loop([1, 2, 3], SamplingParams(max_tokens=20))
    stop = full[6]
    cut = full[: full.index(stop)]
    [completion] = Engine(tiny_model, stop_ids=(stop,)).generate([[1, 2, 3]], SamplingParams(max_tokens=20))
    assert (completion.token_ids, completion.finish_reason, completion.stop_token) == (cut, "stop", stop)

    [completion] = Engine(tiny_model).generate([[1, 2, 3]], SamplingParams(max_tokens=20, stop_token_ids=(stop,)))
    assert (completion.token_ids, completion.stop_token) == (cut, stop)


def test_ignore_eos_goes_past_the_models_stops_only(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    full = plain_loop([1, 2, 3], SamplingParams(max_tokens=20))
    engine = Engine(tiny_model, stop_ids=(full[3],))
    [completion] = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=20, ignore_eos=True))
    assert completion.token_ids == full
    params = SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=(full[3],))
    assert engine.generate([[1, 2, 3]], params)[0].finish_reason == "stop"


def test_without_max_tokens_a_reply_goes_to_the_end_of_the_context(tiny_model: TinyModel) -> None:
    [completion] = Engine(tiny_model).generate([[1, 2, 3]], SamplingParams())
    assert (len(completion.token_ids), completion.finish_reason) == (64 - 3, "length")
    [completion] = Engine(tiny_model, max_context=20).generate([[1, 2, 3]], SamplingParams(max_tokens=50))
    assert (len(completion.token_ids), completion.finish_reason) == (17, "length")


def test_a_seed_gives_the_same_reply_in_any_company(tiny_model: TinyModel) -> None:
    params = SamplingParams(max_tokens=15, temperature=1.5, seed=11)
    engine = Engine(tiny_model)
    alone = engine.generate([[1, 2, 3]], params)[0].token_ids
    others = SamplingParams(max_tokens=9, temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    in_company = engine.generate([*PROMPTS, [1, 2, 3]], [*[others] * 4, params])[-1].token_ids
    assert in_company == alone
    assert engine.generate([[1, 2, 3]], SamplingParams(max_tokens=15, temperature=1.5, seed=12))[0].token_ids != alone


def test_without_a_seed_replies_differ(tiny_model: TinyModel) -> None:
    completions = Engine(tiny_model).generate([[1, 2, 3]] * 4, SamplingParams(max_tokens=20, temperature=2))
    assert len({tuple(c.token_ids) for c in completions}) == 4


def test_a_stream_gives_the_reply_token_by_token(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    outputs = list(Engine(tiny_model).stream([1, 2, 3], SamplingParams(max_tokens=5)))
    assert [len(output.token_ids) for output in outputs] == [1] * 5
    assert tokens(outputs) == plain_loop([1, 2, 3], SamplingParams(max_tokens=5))
    assert [output.finish_reason for output in outputs] == [None] * 4 + ["length"]


def test_streams_requests_and_generate_mix(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine, params = Engine(tiny_model), SamplingParams(max_tokens=8)
    request = engine.add(PROMPTS[0], params)
    streams = [engine.stream(prompt, params) for prompt in PROMPTS[1:3]]
    streamed: list[list[StepOutput]] = [[next(stream)] for stream in streams]
    [completion] = engine.generate([PROMPTS[3]], params)
    for stream, outputs in zip(streams, streamed, strict=True):
        outputs.extend(stream)
    added = run_to_the_end(engine)
    assert set(added) == {request}
    replies = [tokens(added[request]), *map(tokens, streamed), completion.token_ids]
    assert replies == [plain_loop(prompt, params) for prompt in PROMPTS]


def test_an_abandoned_stream_leaves_nothing_behind(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model)
    everything = free_blocks(engine)
    stream = engine.stream([1] * 40)
    list(islice(stream, 3))
    assert engine.has_unfinished
    del stream
    assert not engine.has_unfinished
    engine.stream([1] * 40)
    assert not engine.has_unfinished
    assert free_blocks(engine) == everything


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancelled_request_ends_and_frees_its_blocks(tiny_model: TinyModel, steps: int) -> None:
    engine = Engine(tiny_model, max_batch_tokens=10)
    everything = free_blocks(engine)
    request = engine.add([1] * 25)
    for _ in range(steps):
        assert tokens(engine.step()) == [] or steps == 3
    engine.cancel(request)
    assert engine.step() == [StepOutput(request, (), "cancelled")]
    assert not engine.has_unfinished
    engine.cancel(request)
    assert not engine.has_unfinished
    assert free_blocks(engine) == everything


def test_request_ids_are_the_callers_or_fresh(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model)
    assert engine.add([1], request_id=5) == 5
    assert engine.add([1]) not in (5, None)
    with pytest.raises(EngineError, match="request id 5 is in use"):
        engine.add([1], request_id=5)


def test_logits_score_every_position(tiny_model: TinyModel) -> None:
    ids = [i * 5 % 61 for i in range(50)]
    context = PackedContext([50])
    with torch.inference_mode():
        expected = tiny_model.logits(tiny_model(torch.tensor(ids), context.positions(), context))
    for max_batch_tokens in (64, 50, 16, 7, 1):
        logits = Engine(tiny_model, max_batch_tokens=max_batch_tokens).logits(ids)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected)
    with pytest.raises(ContextLengthError, match=r"65 tokens .* context of 64"):
        Engine(tiny_model).logits([1] * 65)


def test_a_prompt_longer_than_the_context_says_both_numbers(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model)
    for length in (64, 1000):
        with pytest.raises(ContextLengthError, match=rf"{length} tokens .* holds 64") as caught:
            engine.add([1] * length)
        assert caught.value.hint == "shorten the prompt, or cut it off with truncate=True"
    assert not engine.has_unfinished
    with pytest.raises(ContextLengthError) as caught:
        Engine(tiny_model, cache_tokens=32).add([1] * 40)
    assert "larger cache" in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([1, 61], r"token id 61 is outside .* 61 \(position 1\)"),
        ([-1], "token id -1"),
        (["a"], "int"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused(tiny_model: TinyModel, prompt: list[int], message: str) -> None:
    engine = Engine(tiny_model)
    for call in (engine.add, engine.stream, engine.logits, lambda ids: engine.generate([[1], ids], SamplingParams())):
        with pytest.raises(EngineError, match=message):
            call(prompt)
    assert not engine.has_unfinished


def test_limits_that_cannot_be_are_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ResourceError, match="context of 64 tokens does not fit into a cache of 32"):
        Engine(tiny_model, max_context=64, cache_tokens=32)
    with pytest.raises(ResourceError, match="does not fit"):
        Engine(tiny_model, cache_bytes=100)
    with pytest.raises(ContextLengthError, match=r"max_context is 65 .* end at 64"):
        Engine(tiny_model, max_context=65)
    with pytest.raises(EngineError, match="max_batch_tokens must be at least 1, not 0"):
        Engine(tiny_model, max_batch_tokens=0)


def test_a_cache_beyond_all_memory_is_one_clear_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ResourceError, match="no memory for a cache of"):
        Engine(tiny_model, cache_tokens=2**50, max_sequences=2**50)


def test_cache_bytes_bound_the_context(tiny_model: TinyModel) -> None:
    bytes_per_token = 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, width, double precision
    assert Engine(tiny_model, cache_bytes=40 * bytes_per_token, block_size=8).max_context == 40


def test_scores_that_are_not_numbers_end_that_request_alone(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    with torch.no_grad():
        own_model.tokens.weight[13] = torch.nan
    engine = Engine(own_model)
    everything = free_blocks(engine)
    healthy, broken = engine.add([1, 2, 3], SamplingParams(max_tokens=8)), engine.add([5, 13])
    outputs = run_to_the_end(engine)
    [last] = outputs[broken]
    assert last.finish_reason == "error"
    with pytest.raises(EngineError, match=r"not numbers \(request 2, after 2 tokens\)"):
        raise last.error or AssertionError
    assert tokens(outputs[healthy]) == plain_loop([1, 2, 3], SamplingParams(max_tokens=8))

    with pytest.raises(EngineError, match="not numbers"):
        engine.generate([[1, 2, 3], [13]], SamplingParams(max_tokens=8))
    with pytest.raises(EngineError, match="not numbers"):
        list(engine.stream([13]))
    # Blocks that held NaN serve later requests, shorter than their neighbours and so padded.
    completions = engine.generate([[1, 2, 3], [4] * 9], SamplingParams(max_tokens=8))
    assert completions[0].token_ids == plain_loop([1, 2, 3], SamplingParams(max_tokens=8))
    assert free_blocks(engine) == everything


def test_what_is_not_a_number_is_not_kept_for_others(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    """A prefix that came out broken once (a bit flipped, say) is computed again."""
    engine, params = Engine(own_model, block_size=2), SamplingParams(max_tokens=6)
    prompt = [1, 2, 3, 4, 5]
    hook = own_model.tokens.register_forward_hook(lambda *arguments: arguments[2] * float("nan"))
    with pytest.raises(EngineError, match="not numbers"):
        engine.generate([prompt], params)
    hook.remove()
    assert engine.generate([prompt], params)[0].token_ids == plain_loop(prompt, params)


def test_more_than_the_cache_holds_waits_and_comes_through(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model, block_size=4, cache_tokens=32)
    prompts = [[i, i + 1, i + 2] for i in range(20)]
    params = SamplingParams(max_tokens=20)
    assert [c.token_ids for c in engine.generate(prompts, params)] == [plain_loop(p, params) for p in prompts]
    everything = free_blocks(engine)
    streams = [engine.stream(prompt, params) for prompt in prompts[:4]]
    for stream in streams:
        next(stream)
    del stream
    streams.clear()
    assert not engine.has_unfinished
    assert free_blocks(engine) == everything


def test_new_weights_take_effect_in_the_middle_of_a_reply(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    other = new_tiny_model(seed=1)
    engine = Engine(own_model)
    request = engine.add([1, 2, 3], SamplingParams(max_tokens=10))
    head = [token for _ in range(4) for output in engine.step() for token in output.token_ids]
    engine.update_weights(other.state_dict().items())
    tail = tokens(run_to_the_end(engine)[request])
    assert head == plain_loop([1, 2, 3], SamplingParams(max_tokens=4))
    assert tail == plain_loop([1, 2, 3, *head], SamplingParams(max_tokens=6), model=other)
    own_model.head(torch.ones(1, 24, dtype=torch.double)).sum().backward()
    assert own_model.head.weight.grad is not None


def test_new_weights_use_nothing_that_the_old_ones_computed(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    other = new_tiny_model(seed=1)
    engine, params = Engine(own_model, block_size=2), SamplingParams(max_tokens=8)
    engine.generate([[1, 2, 3, 4, 5]], params)
    engine.update_weights(other.state_dict().items())
    [completion] = engine.generate([[1, 2, 3, 4, 5]], params)
    assert completion.token_ids == plain_loop([1, 2, 3, 4, 5], params, model=other)


def test_a_prompt_is_cut_off_only_where_that_is_asked_for(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    prompt = [i % 61 for i in range(100)]
    params = SamplingParams(max_tokens=10, truncate=True)
    [completion] = Engine(tiny_model).generate([prompt], params)
    assert completion.token_ids == plain_loop(prompt[-54:], params)
    [completion] = Engine(tiny_model).generate([prompt], SamplingParams(truncate=True))
    assert completion.token_ids == plain_loop(prompt[-63:], SamplingParams(max_tokens=1))
    [completion] = Engine(tiny_model).generate([[1, 2, 3]], params)
    assert completion.token_ids == plain_loop([1, 2, 3], params)


def test_a_single_request_is_a_single_sample(tiny_model: TinyModel) -> None:
    for call in (Engine(tiny_model).add, Engine(tiny_model).stream):
        with pytest.raises(SamplingError, match=r"one sample, not 3 \(n\)"):
            call([1], SamplingParams(n=3))


def test_weights_that_do_not_fit_are_refused(own_model: TinyModel) -> None:
    engine = Engine(own_model)
    with pytest.raises(EngineError, match=r"no parameter 'haed\.weight'\nhint: did you mean 'head\.weight'"):
        engine.update_weights([("haed.weight", torch.zeros(61, 24))])
    with pytest.raises(EngineError, match=r"'head\.weight' is shaped \[61, 24\], not \[60, 24\]"):
        engine.update_weights([("head.weight", torch.zeros(60, 24))])


def test_a_failing_forward_pass_loses_no_request(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    engine = Engine(tiny_model)
    request = engine.add([1, 2, 3], SamplingParams(max_tokens=6))
    head = tokens(engine.step())

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = tiny_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    hook.remove()
    assert head + tokens(run_to_the_end(engine)[request]) == plain_loop([1, 2, 3], SamplingParams(max_tokens=6))


@pytest.mark.parametrize("prompt_length", [3, 9])
def test_an_interrupted_step_runs_again_as_it_was(
    tiny_model: TinyModel, plain_loop: PlainLoop, monkeypatch: pytest.MonkeyPatch, prompt_length: int
) -> None:
    engine = Engine(tiny_model, max_batch_tokens=5)
    prompts = [[3, 1], list(range(prompt_length))]
    requests = [engine.add(prompt, SamplingParams(max_tokens=8)) for prompt in prompts]
    head = engine.step()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("camelid.engine.step.sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    outputs = run_to_the_end(engine)

    for request, prompt in zip(requests, prompts, strict=True):
        earlier = [output for output in head if output.request_id == request]
        assert tokens([*earlier, *outputs[request]]) == plain_loop(prompt, SamplingParams(max_tokens=8))


def test_a_trainer_may_switch_the_model_between_steps(own_model: TinyModel) -> None:
    modes: list[bool] = []
    own_model.tokens.register_forward_hook(lambda module, *_: modes.append(module.training))
    engine = Engine(own_model)
    engine.add([1, 2, 3], SamplingParams(max_tokens=3))
    for _ in range(2):
        own_model.train()
        engine.step()
    own_model.train()
    engine.logits([1, 2, 3])
    assert modes == [False] * 3


def test_logits_are_fp32_whatever_the_default_dtype(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert engine.logits([1, 2, 3]).dtype == torch.float32
        assert len(engine.generate([[1, 2, 3]], SamplingParams(max_tokens=3))[0].token_ids) == 3
    finally:
        torch.set_default_dtype(before)
