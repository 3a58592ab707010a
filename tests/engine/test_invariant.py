"""In fp32 a reply and its log-probabilities are the same bits alone, in company and in pieces: always with the native
kernels, and without them on request."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from camelid.base.errors import EngineError
from camelid.codecs import FORMATS
from camelid.engine.engine import Engine
from camelid.engine.invariant import InvariantContext
from camelid.engine.kv_cache import PagedContext, PagedKVCache
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import Completion
from camelid.kernels.attention import vector_width
from camelid.model.attention import Chunks, Window
from camelid.model.base import LanguageModel
from camelid.model.linear import Linear
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.llama4 import Llama4
from camelid.model.llama4_config import Llama4Config
from camelid.model.lora import LoraAdapter, LoraConfig
from camelid.model.opt import OPT
from camelid.model.opt_config import OPTConfig

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=144,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=300,
    initializer_range=0.1,
)
LENGTHS = [3, 150, 17, 64, 1, 90, 33]

SAMPLED = SamplingParams(max_tokens=20, temperature=0.8, seed=3, logprobs=True)

needs_kernels = pytest.mark.skipif(
    vector_width() is None, reason="no native kernel was built, or this processor runs none of them"
)


@pytest.fixture(scope="module")
def llama() -> Llama:
    model = Llama.from_config(CONFIG)
    model.initialize(seed=0)
    return model.float()


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camelid.kernels.instruction_set", lambda: None)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (length,), generator=generator).tolist() for length in LENGTHS]


def bits(completion: Completion) -> list[tuple[int, float]]:
    return [(logprob.token_id, logprob.logprob) for logprob in completion.logprobs]


def check_that_bits_hang_on_the_sequence_alone(model: LanguageModel, **options: Any) -> None:
    alone = [bits(Engine(model, **options).generate([prompt], SAMPLED)[0]) for prompt in prompts()]
    ways: list[dict[str, int]] = [{}, {"max_batch_tokens": 37}, {"max_batch_tokens": 5}]
    ways += [{"cache_tokens": 320}, {"num_drafts": 3}, {"block_size": 7}]
    for way in ways:
        engine = Engine(model, **options, **way)
        assert engine.is_batch_invariant
        for _ in range(2):  # the second time from remembered prefixes
            assert [bits(completion) for completion in engine.generate(prompts(), SAMPLED)] == alone, way


@needs_kernels
@pytest.mark.parametrize("cache_format", ["exact", "q8"])
def test_native_kernels_make_bits_hang_on_the_sequence_alone(llama: Llama, cache_format: str) -> None:
    check_that_bits_hang_on_the_sequence_alone(llama, cache_format=cache_format)


@needs_kernels
def test_so_they_do_where_the_feed_forward_layer_is_no_whole_vectors() -> None:
    model = Llama.from_config(dataclasses.replace(CONFIG, intermediate_size=389))
    model.initialize(seed=0)
    check_that_bits_hang_on_the_sequence_alone(model.float())


@needs_kernels
@pytest.mark.parametrize("kind", ["llama4", "opt"])
def test_so_they_do_for_other_architectures(kind: str) -> None:
    model: LanguageModel
    if kind == "opt":
        config = OPTConfig(
            vocab_size=300, hidden_size=96, ffn_dim=192, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=300, word_embed_proj_dim=96, init_std=0.1,
        )  # fmt: skip
        model = OPT.from_config(config)
    else:
        config4 = Llama4Config(
            vocab_size=300, hidden_size=96, intermediate_size=72, intermediate_size_mlp=128, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=3, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
            interleave_moe_layer_step=2, attention_chunk_size=32, max_position_embeddings=300, initializer_range=0.1,
        )  # fmt: skip
        model = Llama4.from_config(config4)
    model.initialize(seed=0)

    check_that_bits_hang_on_the_sequence_alone(model.float())


@needs_kernels
def test_so_they_do_beside_adapters(llama: Llama) -> None:
    adapter = LoraAdapter.new(llama, LoraConfig(rank=16))
    for change in adapter.changes.values():
        torch.nn.init.normal_(change.b, std=0.05, generator=torch.Generator().manual_seed(0))
    names = ["a" if n % 2 else None for n in range(len(LENGTHS))]
    each = [dataclasses.replace(SAMPLED, adapter=name) for name in names]

    def replies(together: bool) -> list[list[tuple[int, float]]]:
        engine = Engine(llama)
        engine.add_adapter("a", adapter)
        if together:
            return [bits(completion) for completion in engine.generate(prompts(), each)]
        return [bits(engine.generate([prompt], params)[0]) for prompt, params in zip(prompts(), each, strict=True)]

    assert replies(together=True) == replies(together=False)
    assert replies(together=True)[1] != [bits(c) for c in Engine(llama).generate(prompts(), SAMPLED)][1]


@pytest.mark.usefixtures("without_kernels")
def test_on_request_they_do_without_kernels(llama: Llama) -> None:
    check_that_bits_hang_on_the_sequence_alone(llama, batch_invariant=True)


@needs_kernels
def test_on_request_they_do_where_kernels_do_only_some_of_the_work() -> None:
    model = Llama.from_config(dataclasses.replace(CONFIG, head_dim=12))
    model.initialize(seed=0)
    assert not Engine(model.float()).is_batch_invariant
    check_that_bits_hang_on_the_sequence_alone(model, batch_invariant=True)


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_bits_hang_on_the_company(llama: Llama) -> None:
    params = SamplingParams(max_tokens=20, logprobs=True)
    alone = [bits(Engine(llama).generate([prompt], params)[0]) for prompt in prompts()]
    engine = Engine(llama)
    assert not engine.is_batch_invariant
    assert [bits(completion) for completion in engine.generate(prompts(), params)] != alone


def test_other_types_do_not_promise_it(llama: Llama) -> None:
    assert not Engine(copy.deepcopy(llama).bfloat16()).is_batch_invariant


@pytest.mark.usefixtures("without_kernels")
def test_adapters_round_with_the_batch_without_kernels(llama: Llama) -> None:
    engine = Engine(llama, batch_invariant=True)
    with pytest.raises(EngineError, match="adapters round with the batch"):
        engine.add_adapter("a", LoraAdapter.new(llama, LoraConfig()))


def test_packed_weights_round_with_the_batch() -> None:
    packed = Llama.from_config(dataclasses.replace(CONFIG, hidden_size=288))
    packed.initialize(seed=0)
    projection = packed.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(projection, Linear)
    projection.load_packed(FORMATS.load("q8_0").pack(projection.dense()))
    assert not Engine(packed).is_batch_invariant
    with pytest.raises(EngineError, match="packed weights round with the batch"):
        Engine(packed, batch_invariant=True)


@pytest.mark.parametrize("reach", [None, Window(10), Chunks(16)])
def test_tiles_attend_as_the_plain_context_does(reach: Window | Chunks | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query_lens, cached_lens = [5, 1, 70], [0, 90, 30]
    tables = [[7], [0, 1, 2, 3, 4, 5], [20, 18, 19, 10, 11, 12, 13]]
    outs = []
    for context_class in (PagedContext, InvariantContext):
        generator.manual_seed(0)
        cache = PagedKVCache(CONFIG, 21, 16, device=torch.device("cpu"), dtype=torch.float64)
        for _, tensor in cache.tensors():
            tensor.normal_(generator=generator)
        q, k, v = (torch.randn(76, heads, 16, generator=generator, dtype=torch.float64) for heads in (9, 3, 3))
        context = context_class(cache, query_lens, cached_lens, tables)
        outs.append(context.attend(1, q, k, v, scale=0.25, reach=reach))
    torch.testing.assert_close(outs[0], outs[1])
