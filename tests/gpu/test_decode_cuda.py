"""Decoding on a CUDA device: recorded steps say what plain ones say. `pytest -m gpu tests/gpu` where there is one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from engine_arrivals import ARRIVALS, LIMITS, Arrival, check_replies
from hypothesis import HealthCheck, given, settings
from tiny_engine_model import TinyConfig, new_tiny_model, run_plain_loop

from camelid.codecs import DEVICE_FORMATS
from camelid.engine.decode_step import DecodeContext
from camelid.engine.engine import Engine
from camelid.engine.kv_cache import CACHES, PagedContext
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import Completion
from camelid.engine.step import StepStats
from camelid.kernels.paged_cuda import paged_attention_on
from camelid.model.attention import Chunks, Reach, Window
from camelid.model.device_weights import pack_projections
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.lora import LoraAdapter, LoraConfig
from camelid.model.opt import OPT, OPTConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; runs where there is one"),
]

CUDA = torch.device("cuda")
SHAPE = {"vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
PROMPTS = [[7, 1, 5], [9] * 40, list(range(60)), [3], [11, 12]]


def new_llama(dtype: torch.dtype = torch.float32) -> Llama:
    shape = {**SHAPE, "intermediate_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    with CUDA:
        model = Llama.from_config(LlamaConfig(**shape, initializer_range=0.1))
    model.initialize(seed=3)
    return model.to(dtype)


def new_opt() -> OPT:
    with CUDA:
        model = OPT.from_config(OPTConfig(**SHAPE, ffn_dim=256, max_position_embeddings=1024, init_std=0.1))
    model.initialize(seed=3)
    return model


def distance(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """‖ours − expected‖ / ‖expected‖."""
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


def check_logprobs(model: Llama, prompt: list[int], reply: Completion, *, within: float) -> None:
    """The reply's log-probabilities are those that the plain engine gives the same text."""
    expected = Engine(model).logits([*prompt, *reply.token_ids]).log_softmax(-1)
    for place, logprob in enumerate(reply.logprobs, len(prompt) - 1):
        assert logprob.logprob == pytest.approx(float(expected[place, logprob.token_id]), abs=within)


@pytest.mark.parametrize("cache_format", CACHES)
@pytest.mark.parametrize("reach", [None, Window(40), Chunks(64)])
@pytest.mark.parametrize(("heads", "head_dim"), [((9, 3), 64), ((32, 8), 128), ((4, 4), 80), ((8, 1), 256)])
@torch.inference_mode()
def test_steps_of_one_form_attend_as_the_plain_context_does(
    cache_format: str, reach: Reach | None, heads: tuple[int, int], head_dim: int
) -> None:
    torch.manual_seed(0)
    config = TinyConfig(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=head_dim)
    cached_lens = [90, 0, 15, 700, 33]
    tables = [[0, 9, 2, 3, 4, 5], [7], [8], list(range(20, 64)), [11, 10, 1]]
    padded = torch.tensor([table + [6] * (64 - len(table)) for table in tables], device=CUDA)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        q, k, v = (torch.randn(5, n, head_dim, device=CUDA).to(dtype) for n in (heads[0], heads[1], heads[1]))
        caches = [CACHES[cache_format](config, 64, 16, device=CUDA, dtype=dtype) for _ in range(2)]
        for (_, ours), (_, theirs) in zip(caches[0].tensors(), caches[1].tensors(), strict=True):
            ours.copy_(torch.randn(ours.shape, device=CUDA) * (1 if ours.is_floating_point() else 20))
            theirs.copy_(ours)
        positions = torch.tensor(cached_lens, device=CUDA)
        plain = PagedContext(caches[1], [1] * 5, cached_lens, tables).attend(1, q, k, v, scale=0.1, reach=reach)
        kernel = paged_attention_on(CUDA, dtype, head_dim)
        assert kernel is not None, "Triton comes with torch for CUDA"
        for attention in (None, kernel):
            context = DecodeContext(caches[0], positions, padded, attention)
            assert distance(context.attend(1, q, k, v, scale=0.1, reach=reach), plain) < tolerance


@pytest.mark.parametrize("build", [new_llama, new_opt])
def test_replies_of_recorded_steps_are_those_of_plain_ones(build: Any) -> None:
    model = build()
    each = [SamplingParams(max_tokens=120 - 20 * n, temperature=n / 4, seed=n) for n in range(5)]
    expected = [reply.token_ids for reply in Engine(model, max_batch_tokens=32).generate(PROMPTS, each)]
    log: list[StepStats] = []
    engine = Engine(model, max_batch_tokens=32, cache_tokens=1024, decode_graphs=True, on_step=log.append)
    for _ in range(2):
        assert [reply.token_ids for reply in engine.generate(PROMPTS, each)] == expected
    assert max(stats.num_sequences for stats in log) == 5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrivals=ARRIVALS, limits=LIMITS)
@pytest.mark.parametrize("decode_graphs", [False, True])
def test_every_reply_is_the_plain_loops(decode_graphs: bool, arrivals: list[Arrival], limits: dict[str, Any]) -> None:
    model = new_tiny_model().to(CUDA)
    check_replies(model, partial(run_plain_loop), arrivals, **limits, decode_graphs=decode_graphs)


def test_what_was_recorded_sees_new_weights_and_new_places() -> None:
    model = new_llama()
    params = SamplingParams(max_tokens=40)
    engine = Engine(model, decode_graphs=True)
    replies = [engine.generate([[1, 2]], params)[0].token_ids]
    engine.update_weights([("lm_head.weight", torch.randn(96, 128, device=CUDA) * 0.1)])
    replies.append(engine.generate([[1, 2]], params)[0].token_ids)
    assert replies[1] == Engine(model).generate([[1, 2]], params)[0].token_ids
    assert model.lm_head is not None
    model.lm_head.load_dense(torch.randn(96, 128, device=CUDA) * 0.1)
    engine.update_weights([])  # forget what the old weights computed
    replies.append(engine.generate([[1, 2]], params)[0].token_ids)
    assert replies[2] == Engine(model).generate([[1, 2]], params)[0].token_ids
    assert len({tuple(reply) for reply in replies}) == 3


def test_adapters_and_guesses_run_beside_recorded_steps() -> None:
    model = new_llama()
    adapter = LoraAdapter.new(model, LoraConfig(rank=4))
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.b, std=0.3, generator=torch.Generator().manual_seed(1))
    prompts = [[5, 4, 3] * 5, [5, 4, 3] * 5, [8]]
    each = [SamplingParams(max_tokens=40, adapter=name) for name in ("a", None, None)]
    replies = []
    for options in ({}, {"decode_graphs": True}, {"decode_graphs": True, "num_drafts": 3}):
        engine = Engine(model, **options)
        engine.add_adapter("a", adapter)
        replies.append([reply.token_ids for reply in engine.generate(prompts, each)])
        replies.append([reply.token_ids for reply in engine.generate(prompts[1:], each[1:])])
    assert replies[0] == replies[2] == replies[4]
    assert replies[1] == replies[3] == replies[5] == replies[0][1:]


def test_bf16_steps_that_are_recorded_score_as_plain_ones_do() -> None:
    """Tokens may part where two score alike within bf16's rounding; the scores of the same text may not."""
    model = new_llama(torch.bfloat16)
    params = SamplingParams(max_tokens=100, logprobs=True)
    recorded = Engine(model, decode_graphs=True).generate(PROMPTS, params)
    for prompt, reply in zip(PROMPTS, recorded, strict=True):
        check_logprobs(model, prompt, reply, within=0.1)


@pytest.mark.parametrize(("format", "tolerance"), [("int8", 1e-2), ("int8_dynamic", 3e-2), ("int4", 0.15)])
def test_projections_of_few_bits_compute_nearly_what_dense_ones_do(format: str, tolerance: float) -> None:
    pytest.importorskip("torchao", reason="needs torchao; runs where camelid[torchao] is installed")
    torch.manual_seed(0)
    weight = torch.randn(384, 256, device=CUDA, dtype=torch.bfloat16)
    packed = DEVICE_FORMATS.load(format).pack(weight)
    for num_tokens in (1, 7, 40):
        x = torch.randn(num_tokens, 256, device=CUDA, dtype=torch.bfloat16)
        product = DEVICE_FORMATS.load(format).matmul(x, packed)
        assert distance(product, x.double() @ weight.double().T) < tolerance
        assert distance(product, x.double() @ DEVICE_FORMATS.load(format).unpack(packed).double().T) < 2e-2


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_steps_over_few_bits_are_recorded(format: str) -> None:
    pytest.importorskip("torchao", reason="needs torchao; runs where camelid[torchao] is installed")
    model = new_llama(torch.bfloat16)
    pack_projections(model, format)
    params = SamplingParams(max_tokens=60, logprobs=True)
    recorded = Engine(model, decode_graphs=True).generate(PROMPTS, params)
    for prompt, reply in zip(PROMPTS, recorded, strict=True):
        check_logprobs(model, prompt, reply, within=0.1)


@pytest.mark.parametrize("decode_graphs", [False, True])
def test_compiled_replies_are_the_plain_ones_and_nothing_is_compiled_twice(decode_graphs: bool) -> None:
    model = new_llama()
    params = SamplingParams(max_tokens=60)
    expected = [reply.token_ids for reply in Engine(model).generate(PROMPTS, params)]
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    engine = Engine(model, compile=True, decode_graphs=decode_graphs)
    assert [reply.token_ids for reply in engine.generate(PROMPTS, params)] == expected
    engine.generate(PROMPTS[:1], params)
    assert counts["unique_graphs"] == 2
    long = [[*range(90), *range(90), *range(90), n] for n in range(3)]
    together = [reply.token_ids for reply in engine.generate(long, params)]
    assert counts["unique_graphs"] == 2
    assert together == [reply.token_ids for reply in Engine(model).generate(long, params)]


@pytest.mark.parametrize("format", ["int8", "int8_dynamic"])
def test_compiled_steps_over_8_bits_are_recorded(format: str) -> None:
    pytest.importorskip("torchao", reason="needs torchao; runs where camelid[torchao] is installed")
    model = new_llama(torch.bfloat16)
    pack_projections(model, format)
    torch.compiler.reset()
    engine = Engine(model, compile=True, decode_graphs=True)
    recorded = engine.generate(PROMPTS[:3], SamplingParams(max_tokens=30, logprobs=True))
    for prompt, reply in zip(PROMPTS, recorded, strict=False):
        check_logprobs(model, prompt, reply, within=0.2)
