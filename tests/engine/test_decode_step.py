"""Decoding steps of one form: padded, recorded once and replayed, they say what steps of any mix say."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tiny_engine_model import PlainLoop, TinyConfig, TinyModel
from torch import Tensor

from camelid.base.errors import EngineError
from camelid.codecs import FORMATS
from camelid.engine.decode_graphs import Recorder, Recording
from camelid.engine.decode_step import DecodeContext, DecodeStep, buckets
from camelid.engine.engine import Engine
from camelid.engine.kv_cache import CACHES, PagedContext
from camelid.engine.params import SamplingParams
from camelid.engine.step import StepStats
from camelid.model.attention import Chunks, Reach, Window
from camelid.model.llama import Llama, LlamaConfig

PROMPTS = [[3, 1, 4, 1, 5], [9] * 20, [2], [6, 5, 3, 5, 8, 9, 7, 9], [7, 7]]
EACH = [SamplingParams(max_tokens=30 - 5 * n, temperature=n / 2, seed=n) for n in range(5)]


class StandIn:
    """In place of a CUDA device: a replay runs the function again, and nothing that was returned before is kept."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.num_replays = 0

    def record(self, run: Callable[[], Tensor]) -> Recording:
        out = torch.full_like(run(), math.nan)
        self.shapes.append(tuple(out.shape))

        def replay() -> None:
            self.num_replays += 1
            out.copy_(run())

        return Recording(replay, out)


def recording_engine(model: TinyModel, device: StandIn, **options: int) -> Engine:
    """An engine whose steps are recorded as on a CUDA device."""
    engine = Engine(model, decode_graphs=True, **options)
    engine._runner.decode_step = DecodeStep(
        model,
        engine._runner.cache,
        max_sequences=options.get("max_sequences", 64),
        max_context=engine.max_context,
        recorder=Recorder(model, device),
    )
    return engine


def test_replies_of_replayed_steps_are_the_plain_loops(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    device = StandIn()
    log: list[StepStats] = []
    engine = recording_engine(tiny_model, device, block_size=4, cache_tokens=68, on_step=log.append)
    expected = [plain_loop(prompt, params) for prompt, params in zip(PROMPTS, EACH, strict=True)]
    for _ in range(2):
        completions = engine.generate(PROMPTS, EACH)
        assert [completion.token_ids for completion in completions] == expected
    assert log[-1].num_preemptions > 0
    assert log[-1].num_reused_tokens > 0
    num_decoding = sum(stats.num_tokens == stats.num_sequences for stats in log)
    assert device.num_replays == num_decoding
    assert num_decoding > 0.8 * len(log)
    # One, two, four and eight sequences; one length of tables, for which the shortest has room.
    assert sorted(device.shapes) == [(size, 61) for size in (1, 2, 4, 8)]


def test_tables_grow_in_steps(tiny_model: TinyModel, plain_loop: PlainLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camelid.engine.decode_step.SHORTEST", 8)
    device = StandIn()
    engine = recording_engine(tiny_model, device, block_size=4, max_sequences=3)
    params = SamplingParams(max_tokens=50)
    [long, short] = engine.generate([[5, 4], [1]], [params, SamplingParams(max_tokens=3)])
    assert long.token_ids == plain_loop([5, 4], params)
    assert short.token_ids == plain_loop([1], params)[:3]
    # Together while both have room in 8 tokens; then alone in 8, 16, 32 and 64.
    assert device.shapes == [(2, 61), (1, 61), (1, 61), (1, 61), (1, 61)]


@pytest.mark.parametrize("least", [1, 2, 16])
def test_buckets_double_up_to_the_greatest(least: int) -> None:
    for greatest in range(1, 70):
        sizes = buckets(least, greatest)
        assert sizes[-1] == greatest
        assert sizes[0] == min(least, greatest)
        assert all(smaller < larger <= 2 * smaller for smaller, larger in itertools.pairwise(sizes))


def test_new_weights_are_seen_by_what_was_recorded(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    device = StandIn()
    engine = recording_engine(own_model, device)
    params = SamplingParams(max_tokens=20)
    before = engine.generate([[1, 2]], params)[0].token_ids
    engine.update_weights([("head.weight", torch.randn(61, 24, dtype=torch.float64))])
    after = engine.generate([[1, 2]], params)[0].token_ids
    assert after == plain_loop([1, 2], params, model=own_model) != before
    assert len(device.shapes) == 1


def test_weights_that_lie_elsewhere_are_recorded_anew(own_model: TinyModel, plain_loop: PlainLoop) -> None:
    device = StandIn()
    engine = recording_engine(own_model, device)
    params = SamplingParams(max_tokens=20)
    engine.generate([[1, 2]], params)
    own_model.head.load_dense(torch.randn(61, 24, dtype=torch.float64))
    assert engine.generate([[1, 2]], params)[0].token_ids == plain_loop([1, 2], params, model=own_model)
    assert len(device.shapes) == 2


def test_what_cannot_be_recorded_is_an_error_of_the_engines(tiny_model: TinyModel) -> None:
    class Broken(StandIn):
        def record(self, run: Callable[[], Tensor]) -> Recording:
            raise RuntimeError("operation not permitted when stream is capturing")

    engine = recording_engine(tiny_model, Broken())
    with pytest.raises(EngineError, match="can't be recorded: operation not permitted") as caught:
        engine.generate([[1, 2]], SamplingParams(max_tokens=5))
    assert "without decode_graphs" in str(caught.value.hint)


@pytest.mark.parametrize("cache_format", CACHES)
@pytest.mark.parametrize("reach", [None, Window(10), Chunks(16)])
@pytest.mark.parametrize("heads", [(9, 3), (4, 4)])
@torch.inference_mode()
def test_it_attends_as_the_plain_context_does(cache_format: str, reach: Reach | None, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    config = TinyConfig(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=16)
    cached_lens, tables = [90, 0, 15, 33], [[0, 9, 2, 3, 4, 5], [7], [8], [11, 10, 1]]
    q, k, v = (torch.randn(4, n, 16, generator=generator, dtype=torch.float64) for n in (heads[0], heads[1], heads[1]))
    caches = [CACHES[cache_format](config, 13, 16, device=torch.device("cpu"), dtype=torch.float64) for _ in range(2)]
    for (_, ours), (_, theirs) in zip(caches[0].tensors(), caches[1].tensors(), strict=True):
        ours.copy_(torch.randn(ours.shape, generator=generator, dtype=torch.float64) * 20)
        theirs.copy_(ours)
    for _, tensor in caches[0].tensors():
        if tensor.is_floating_point():  # what no sequence holds is never looked at
            tensor.view(13, 16, *tensor.shape[1:])[6] = math.nan
            tensor[7 * 16 + 1 : 8 * 16] = math.nan
    padded = torch.tensor([table + [6] * (8 - len(table)) for table in tables])

    ours = DecodeContext(caches[0], torch.tensor(cached_lens), padded).attend(1, q, k, v, scale=0.3, reach=reach)
    plain = PagedContext(caches[1], [1] * 4, cached_lens, tables).attend(1, q, k, v, scale=0.3, reach=reach)

    torch.testing.assert_close(ours, plain)
    for (_, ours), (_, theirs) in zip(caches[0].tensors(), caches[1].tensors(), strict=True):
        written = [table[length // 16] * 16 + length % 16 for table, length in zip(tables, cached_lens, strict=True)]
        assert torch.equal(ours[written], theirs[written])


def test_padding_writes_to_no_sequences_block(tiny_model: TinyModel) -> None:
    engine = Engine(tiny_model, block_size=4, cache_tokens=40, max_context=12, decode_graphs=True)
    cache = engine._runner.cache
    for n in range(3):
        engine.add([n + 1, 2], SamplingParams(max_tokens=9))
    engine.step()
    for _, tensor in cache.tensors():
        tensor.nan_to_num_()  # unwritten memory holds anything
    before = [tensor.clone() for _, tensor in cache.tensors()]
    engine.step()
    changed = {
        slot
        for old, (_, new) in zip(before, cache.tensors(), strict=True)
        for slot in (old != new).flatten(1).any(1).nonzero().flatten().tolist()
    }
    assert cache.num_blocks == 11
    assert changed == {2, 6, 10, 40}  # the third token of each sequence, and the first slot of the spare block


def test_what_does_not_go_together_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(EngineError, match="round with the batch"):
        Engine(tiny_model, decode_graphs=True, batch_invariant=True)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    packed = Llama.from_config(LlamaConfig(vocab_size=32, num_key_value_heads=2, **shape))
    packed.initialize(seed=0)
    assert not Engine(packed, decode_graphs=True).is_batch_invariant
    projection = packed.model.layers[0].mlp.up_proj
    projection.load_packed(FORMATS.load("q8_0").pack(projection.dense()))
    with pytest.raises(EngineError, match="weights in q8_0 decide") as caught:
        Engine(packed, compile=True)
    assert "packed=False" in str(caught.value.hint)


def test_guesses_and_prompts_run_as_without(tiny_model: TinyModel, plain_loop: PlainLoop) -> None:
    device = StandIn()
    log: list[StepStats] = []
    engine = recording_engine(tiny_model, device, num_drafts=3, on_step=log.append)
    params = SamplingParams(max_tokens=30)
    prompt = [5, 4, 3, 5, 4, 3, 5, 4]
    assert engine.generate([prompt], params)[0].token_ids == plain_loop(prompt, params)
    assert 0 < device.num_replays == sum(stats.num_tokens == stats.num_sequences for stats in log) < len(log) - 1
    assert log[-1].num_drafts > 0


def test_q8_keys_decode_the_same_with_and_without(tiny_model: TinyModel) -> None:
    replies = [
        [c.token_ids for c in Engine(tiny_model, cache_format="q8", decode_graphs=on).generate(PROMPTS, EACH)]
        for on in (False, True)
    ]
    assert replies[0] == replies[1]


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 512])
def test_log_probabilities_are_those_of_the_plain_steps(tiny_model: TinyModel, max_batch_tokens: int) -> None:
    each = [dataclasses.replace(params, logprobs=True, top_logprobs=2, prompt_logprobs=1) for params in EACH]
    for mine, plain in zip(
        recording_engine(tiny_model, StandIn(), max_batch_tokens=max_batch_tokens).generate(PROMPTS, each),
        Engine(tiny_model, max_batch_tokens=max_batch_tokens).generate(PROMPTS, each),
        strict=True,
    ):
        assert [p.token_id for p in mine.logprobs] == [p.token_id for p in plain.logprobs]
        assert [p.logprob for p in mine.logprobs] == pytest.approx([p.logprob for p in plain.logprobs], abs=1e-6)
        assert mine.prompt_logprobs == plain.prompt_logprobs
