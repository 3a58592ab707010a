"""A Llama 4 small enough to be written and read in milliseconds, and with the settings that GGUF takes for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.checkpoint import save_huggingface
from camelid.model.llama4 import Llama4, Llama4Config

if TYPE_CHECKING:
    from pathlib import Path

LLAMA_4 = Llama4Config(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    intermediate_size_mlp=96,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_local_experts=4,
    max_position_embeddings=32_768,
)


def llama4_folder(path: Path, config: Llama4Config = LLAMA_4, dtype: torch.dtype = torch.float32) -> Path:
    model = Llama4.from_config(config)
    model.initialize(seed=3)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    save_huggingface(model.to(dtype), path)
    return path
