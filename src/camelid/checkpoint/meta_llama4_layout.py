"""How Meta's Llama 4 files lay out a model: fused matrices, experts in one tensor, and what shards split.

Sources: llama-models, models/llama4/{model,moe,ffn}.py (their load hooks) and models/checkpoint.py; transformers,
models/llama4/convert_llama4_weights_to_hf.py. Queries and keys are in the same order in both: both rotate pairs.

Shape suffixes: X experts, E hidden size, F width of an expert in one shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

Parts: TypeAlias = "Sequence[Sequence[Tensor]]"
"""For each of a group's tensors in Meta's files its parts, one for each shard."""


@dataclass(frozen=True)
class Sizes:
    """What the cutting of fused tensors depends on."""

    num_heads: int
    num_key_value_heads: int
    num_experts: int


@dataclass(frozen=True)
class Group:
    """Tensors of Meta's files and those of a Hugging Face folder that are the same numbers."""

    meta: tuple[str, ...]
    """Names; "{layer}" stands for its number."""
    huggingface: tuple[str, ...]
    join: Callable[[Parts, int, Sizes], Tensor]
    """(parts, which of Hugging Face's tensors, sizes) → it."""
    cut: Callable[[Sequence[Tensor], int, int, int, Sizes], Tensor]
    """(Hugging Face's tensors, which of Meta's, shard, number of shards, sizes) → the shard's part."""
    with_experts: bool | None = None
    """Whether only layers with experts have it, or only those without; None: all."""


def _plain(meta: str, huggingface: str, axis: int | None, with_experts: bool | None = None) -> Group:
    """One tensor, split along a dimension or the same in every shard (None)."""

    def join(parts: Parts, which: int, sizes: Sizes) -> Tensor:
        (part,) = parts
        return part[0] if axis is None or len(part) == 1 else torch.cat(list(part), dim=axis)

    def cut(whole: Sequence[Tensor], which: int, shard: int, count: int, sizes: Sizes) -> Tensor:
        return whole[0] if axis is None else whole[0].chunk(count, dim=axis)[shard]

    return Group((meta,), (huggingface,), join, cut, with_experts)


def _stacked(meta: str, huggingface: tuple[str, ...], shares: Callable[[Sizes], Sequence[int]]) -> Group:
    """Several matrices' rows under each other, again in every shard; `shares` says in which proportion."""

    def join(parts: Parts, which: int, sizes: Sizes) -> Tensor:
        share = shares(sizes)
        unit = parts[0][0].shape[0] // sum(share)
        return torch.cat([torch.split(part, [unit * one for one in share])[which] for part in parts[0]])

    def cut(whole: Sequence[Tensor], which: int, shard: int, count: int, sizes: Sizes) -> Tensor:
        return torch.cat([one.chunk(count)[shard] for one in whole])

    return Group((meta,), huggingface, join, cut)


def _join_router(parts: Parts, which: int, sizes: Sizes) -> Tensor:
    return parts[0][0].T.contiguous()


def _cut_router(whole: Sequence[Tensor], which: int, shard: int, count: int, sizes: Sizes) -> Tensor:
    return whole[0].T


def _join_inputs(parts: Parts, which: int, sizes: Sizes) -> Tensor:
    """Gate and up, each [X·E, F] in a shard → [X, E, all F of both]."""
    return torch.cat([one.view(sizes.num_experts, -1, one.shape[1]) for part in parts for one in part], dim=-1)


def _cut_inputs(whole: Sequence[Tensor], which: int, shard: int, count: int, sizes: Sizes) -> Tensor:
    return whole[0].chunk(2, dim=-1)[which].chunk(count, dim=-1)[shard].flatten(0, 1)


def _join_outputs(parts: Parts, which: int, sizes: Sizes) -> Tensor:
    """[X·F, E] in a shard → [X, all F, E]."""
    return torch.cat([part.view(sizes.num_experts, -1, part.shape[1]) for part in parts[0]], dim=1)


def _cut_outputs(whole: Sequence[Tensor], which: int, shard: int, count: int, sizes: Sizes) -> Tensor:
    return whole[0].chunk(count, dim=1)[shard].flatten(0, 1)


_META, _HF = "layers.{layer}", "model.layers.{layer}"
_MOE, _HF_MOE = f"{_META}.feed_forward", f"{_HF}.feed_forward"

GROUPS: Final = (
    _plain("tok_embeddings.weight", "model.embed_tokens.weight", 0),
    _plain("norm.weight", "model.norm.weight", None),
    _plain("output.weight", "lm_head.weight", 0),
    _plain(f"{_META}.attention.wqkv.layer_norm_weight", f"{_HF}.input_layernorm.weight", None),
    _stacked(
        f"{_META}.attention.wqkv.weight",
        (f"{_HF}.self_attn.q_proj.weight", f"{_HF}.self_attn.k_proj.weight", f"{_HF}.self_attn.v_proj.weight"),
        lambda sizes: (sizes.num_heads, sizes.num_key_value_heads, sizes.num_key_value_heads),
    ),
    _plain(f"{_META}.attention.wo.weight", f"{_HF}.self_attn.o_proj.weight", 1),
    _plain(f"{_MOE}.mlp.layer_norm_weight", f"{_HF}.post_attention_layernorm.weight", None, with_experts=False),
    _stacked(
        f"{_MOE}.mlp.fc1_weight",
        (f"{_HF_MOE}.gate_proj.weight", f"{_HF_MOE}.up_proj.weight"),
        lambda sizes: (1, 1),
    ),
    _plain(f"{_MOE}.mlp.fc2_weight", f"{_HF_MOE}.down_proj.weight", 1),
    _plain(f"{_MOE}.norm.weight", f"{_HF}.post_attention_layernorm.weight", None, with_experts=True),
    Group((f"{_MOE}.router_DE",), (f"{_HF_MOE}.router.weight",), _join_router, _cut_router),
    Group(
        (f"{_MOE}.experts.moe_w_in_eD_F", f"{_MOE}.experts.moe_w_swiglu_eD_F"),
        (f"{_HF_MOE}.experts.gate_up_proj",),
        _join_inputs,
        _cut_inputs,
    ),
    Group((f"{_MOE}.experts.moe_w_out_eF_D",), (f"{_HF_MOE}.experts.down_proj",), _join_outputs, _cut_outputs),
    _plain(f"{_MOE}.w_in_shared_FD.weight", f"{_HF_MOE}.shared_expert.gate_proj.weight", 0),
    _plain(f"{_MOE}.w_swiglu_FD.weight", f"{_HF_MOE}.shared_expert.up_proj.weight", 0),
    _plain(f"{_MOE}.w_out_shared_DF.weight", f"{_HF_MOE}.shared_expert.down_proj.weight", 1),
)

LEFT_OUT: Final = frozenset(
    {
        "rope.freqs",
        "freq_cis",
        f"{_MOE}.global_gate_stats_3E",
        f"{_MOE}.expert_activation_DE",
        f"{_META}.attention.wqkv._extra_state",
        f"{_META}.attention.wo._extra_state",
        f"{_MOE}.mlp._extra_state",
        f"{_MOE}.mlp_shared._extra_state",
        f"{_MOE}.experts.mlp._extra_state",
    }
)
"""What follows from the config, and what training left behind."""

IMAGES: Final = ("vision_embeddings.", "vision_projection.")
"""What the names of the parts for images begin with; they are left out."""
