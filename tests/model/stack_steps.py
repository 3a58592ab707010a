"""A small Llama whose blocks run in one native call, and single steps of it over a cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from camelid.engine.kv_cache import PagedContext, PagedKVCache
from camelid.kernels.attention import vector_width
from camelid.model import block_stack
from camelid.model.base import LanguageModel
from camelid.model.llama import Llama, LlamaConfig

needs_kernels = pytest.mark.skipif(
    vector_width() is None, reason="no native kernel was built, or this processor runs none"
)

Spans = Sequence[tuple[int, int]]
"""Of each sequence of a step: new tokens, and tokens in the cache."""


def new_model(
    heads: tuple[int, int] = (2, 2), head_dim: int = 32, hidden: int = 64, width: int = 96, **options: bool
) -> Llama:
    config = LlamaConfig(
        vocab_size=200, hidden_size=hidden, intermediate_size=width, num_hidden_layers=3,
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=head_dim,
        max_position_embeddings=512, initializer_range=0.1, **options,
    )  # fmt: skip
    model = Llama.from_config(config)
    model.initialize(seed=0)
    return model.eval()


class Calls:
    """Counts the calls of all blocks at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._num = 0
        native = block_stack.transformer_stack

        def counted(*args: object, **options: object) -> Tensor:
            self._num += 1
            return native(*args, **options)

        monkeypatch.setattr(block_stack, "transformer_stack", counted)

    def taken(self) -> int:
        """Those since the last time that this was asked."""
        num, self._num = self._num, 0
        return num


class ModuleByModule(PagedContext):
    """A context in which no blocks run in one call."""

    def paged_place(self) -> None:
        """Nowhere."""


def step(
    model: LanguageModel,
    spans: Spans,
    wanted_lens: Sequence[int] | None = None,
    *,
    context_class: type[PagedContext] = PagedContext,
    dtype: torch.dtype = torch.float32,
    gradients: bool = False,
) -> list[Tensor]:
    """The hidden states of one step over a cache full of noise, and what the cache holds afterwards."""
    generator, blocks = torch.Generator().manual_seed(0), list(range(60, 0, -1))
    tables = [[blocks.pop() for _ in range(-(-(new + cached) // 16))] for new, cached in spans]
    cache = PagedKVCache(model.config, 61, 16, device=torch.device("cpu"), dtype=dtype)
    for _, tensor in cache.tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    lens = [new for new, _ in spans], [cached for _, cached in spans]
    context = context_class(cache, *lens, tables, wanted_lens=wanted_lens)
    ids = torch.randint(model.config.vocab_size, (sum(lens[0]),), generator=generator)
    ids = torch.cat((ids, ids.new_zeros(len(context.positions) - len(ids))))
    with torch.inference_mode(not gradients):
        hidden = model(ids, context.positions, context)
    return [hidden, *(tensor for _, tensor in cache.tensors())]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two steps gave the same bits and left the same in the cache."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
