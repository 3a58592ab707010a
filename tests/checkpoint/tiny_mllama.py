"""A Llama 3.2 Vision small enough to be written and read quickly, with what Meta's files take for granted."""

from __future__ import annotations

from typing import Any

import torch
from mllama_pair import TEXT, VISION

from camelid.model.mllama import Mllama, MllamaConfig

_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_TEXT: dict[str, Any] = {
    **TEXT,
    "num_hidden_layers": 6,
    "cross_attention_layers": [1, 4],
    "max_position_embeddings": 131_072,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rope_parameters": _ROPE,
}
_VISION: dict[str, Any] = {
    **VISION,
    "num_hidden_layers": 32,
    "attention_heads": 16,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "vision_output_dim": 192,
}
MLLAMA = MllamaConfig.from_hf({"text_config": _TEXT, "vision_config": _VISION, "image_token_index": 128})


def tiny_mllama(config: MllamaConfig = MLLAMA) -> Mllama:
    """Every parameter drawn at random; what each arrangement of tiles has for a tile is the same."""
    model = Mllama.from_config(config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter)
        if name.endswith(("tile_embedding.weight", "tile_positional_embedding.embedding.weight")):
            parameter.data = by_arrangement(torch.randn(4, 4, parameter.shape[1] // 4))
    return model


def by_arrangement(table: torch.Tensor) -> torch.Tensor:
    """Of a table of tiles, what each arrangement of them says."""
    rows = [torch.zeros(4 * table.shape[2])]
    for height, width in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]:
        tiles = [table[row, column] for row in range(height) for column in range(width)]
        rows.append(torch.cat([*tiles, torch.zeros((4 - len(tiles)) * table.shape[2])]))
    return torch.stack(rows)
