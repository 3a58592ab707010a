"""Meta's folders, written the plain way: named, reordered and cut with nothing but torch, as the releases are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from camelid.model.llama import Llama

SPLIT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}
IN_A_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def meta_tensors(model: Llama) -> dict[str, torch.Tensor]:
    """The model's weights under Meta's names and in its order of rows."""
    config = model.config
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
            meta_name = f"layers.{layer}.{IN_A_LAYER[rest]}"
            if rest in ("self_attn.q_proj", "self_attn.k_proj"):
                value = interleaved(value, config.head_dim)
        else:
            meta_name = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}[
                name.removesuffix(".weight")
            ]
        tensors[f"{meta_name}.weight"] = value.clone()
    return tensors


def interleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Row 2i + r of a head is row r·D/2 + i of Hugging Face's."""
    out = torch.empty_like(rows)
    for head in range(0, len(rows), head_dim):
        for i in range(head_dim // 2):
            for r in (0, 1):
                out[head + 2 * i + r] = rows[head + r * head_dim // 2 + i]
    return out


def cut(name: str, value: torch.Tensor, rank: int, count: int, embedding_axis: int) -> torch.Tensor:
    part = name.removesuffix(".weight").rpartition(".")[2]
    axis = embedding_axis if part == "tok_embeddings" else SPLIT.get(part)
    return value if axis is None else value.chunk(count, dim=axis)[rank].clone()


def write_meta_folder(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    params: Mapping[str, Any],
    *,
    shards: int = 1,
    embedding_axis: int = 1,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    for rank in range(shards):
        parts = {name: cut(name, value, rank, shards, embedding_axis) for name, value in tensors.items()}
        torch.save(parts, folder / f"consolidated.{rank:02}.pth")
    return folder
