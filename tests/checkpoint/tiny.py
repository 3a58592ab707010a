"""A Llama small enough to be written, read and compared in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.model.attention import PackedContext
from camelid.model.llama import Llama, LlamaConfig

if TYPE_CHECKING:
    from camelid.model.base import LanguageModel

IDS = torch.tensor([3, 14, 15, 92, 65, 35, 89, 79])


def tiny_config(*, tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )


def tiny_model(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> Llama:
    model = Llama.from_config(tiny_config(tied=tied))
    model.initialize(seed=7)
    return model.to(dtype)


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    context = PackedContext([len(IDS)])
    return model.logits(model(IDS, context.positions(), context))
