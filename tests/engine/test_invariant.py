"""Batch-invariant mode in fp32: a reply and its log-probabilities are the same bits alone, in company and in pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from camelid.base.errors import EngineError
from camelid.codecs import FORMATS
from camelid.engine.engine import Engine
from camelid.engine.invariant import InvariantContext
from camelid.engine.kv_cache import PagedContext, PagedKVCache
from camelid.engine.params import SamplingParams
from camelid.engine.protocol import Completion
from camelid.model.attention import Chunks, Window
from camelid.model.linear import Linear
from camelid.model.llama import Llama, LlamaConfig
from camelid.model.lora import LoraAdapter, LoraConfig

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


@pytest.fixture(scope="module")
def llama() -> Llama:
    model = Llama.from_config(CONFIG)
    model.initialize(seed=0)
    return model.float()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (length,), generator=generator).tolist() for length in LENGTHS]


def bits(completion: Completion) -> list[tuple[int, float]]:
    return [(logprob.token_id, logprob.logprob) for logprob in completion.logprobs]


def test_bits_hang_on_the_sequence_alone(llama: Llama) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=3, logprobs=True)
    alone = [bits(Engine(llama, batch_invariant=True).generate([prompt], params)[0]) for prompt in prompts()]
    for options in (
        {},
        {"max_batch_tokens": 37},
        {"max_batch_tokens": 5},
        {"cache_tokens": 320},
        {"num_drafts": 3},
    ):
        engine = Engine(llama, batch_invariant=True, **options)
        for _ in range(2):  # the second time from remembered prefixes
            assert [bits(completion) for completion in engine.generate(prompts(), params)] == alone, options


def test_without_it_bits_hang_on_the_company(llama: Llama) -> None:
    params = SamplingParams(max_tokens=20, logprobs=True)
    alone = [bits(Engine(llama).generate([prompt], params)[0]) for prompt in prompts()]
    together = [bits(completion) for completion in Engine(llama).generate(prompts(), params)]
    assert together != alone


def test_what_still_rounds_with_the_batch_is_refused(llama: Llama) -> None:
    engine = Engine(llama, batch_invariant=True)
    with pytest.raises(EngineError, match="adapters round with the batch"):
        engine.add_adapter("a", LoraAdapter.new(llama, LoraConfig()))
    packed = Llama.from_config(dataclasses.replace(CONFIG, hidden_size=288))
    packed.initialize(seed=0)
    projection = packed.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(projection, Linear)
    projection.load_packed(FORMATS.load("q8_0").pack(projection.dense()))
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
