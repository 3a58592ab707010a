"""Causal attention over sequences that lie end to end, on a CUDA device: one call of torch's flash attention for all.

The plain twin is `camelid.model.attention.PackedContext` on tensors that `flash_runs_on` refuses: a call per sequence.

Shape suffixes: T tokens of all sequences end to end, H query heads, K key/value heads, D head dimension, N sequences.
"""

from __future__ import annotations

from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LARGEST_HEAD = 256
"""Dimensions of a head that flash attention takes, in steps of 8."""


class Layout(NamedTuple):
    """Where sequences lie, as the kernel wants to be told: made once per pass, before anything is compiled."""

    starts_N1: Tensor
    """int32 on the device; sequence n has the tokens starts[n] … starts[n + 1] − 1."""
    longest: int
    """Tokens of the longest sequence."""
    keywords: frozenset[str]
    """What torch's function takes, which has changed from 2.11 to 2.13."""


def layout(lengths: Sequence[int], device: torch.device) -> Layout:
    """The layout of sequences of these lengths, end to end."""
    from torch.nn.attention import varlen  # brings torch's compiler, 1.7 seconds, which a CPU has no use for

    starts_N1 = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, pin_memory=device.type == "cuda")
    keywords = frozenset(signature(varlen.varlen_attn).parameters)
    return Layout(starts_N1.to(device, non_blocking=True), max(lengths), keywords)


def flash_runs_on(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> bool:
    """Whether `flash_attention` takes these: 16 bits on a CUDA device, heads of whole vectors."""
    head_dim = q_THD.shape[-1]
    return (
        q_THD.device.type == "cuda"
        and q_THD.dtype in (torch.bfloat16, torch.float16)
        and q_THD.dtype == k_TKD.dtype == v_TKD.dtype
        and head_dim % 8 == 0
        and head_dim <= LARGEST_HEAD
    )


def flash_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, where: Layout, *, scale: float) -> Tensor:
    """Causal attention within each sequence: [T, H, D], differentiable.

    Args:
        q_THD: queries, for which `flash_runs_on` holds.
        k_TKD: keys; query head h reads key/value head h // (H // K).
        v_TKD: values.
        where: the sequences; their lengths sum to T.
        scale: factor of the scores before the softmax.
    """
    from torch.nn.attention import varlen

    starts_N1, longest, keywords = where
    if "enable_gqa" not in keywords and q_THD.shape[1] != k_TKD.shape[1]:
        k_TKD, v_TKD = (x.repeat_interleave(q_THD.shape[1] // x.shape[1], 1) for x in (k_TKD, v_TKD))
    if "scale" not in keywords:
        q_THD = q_THD * (scale * q_THD.shape[-1] ** 0.5)
    is_grouped = q_THD.shape[1] != k_TKD.shape[1]
    wanted = {"is_causal": True, "window_size": (-1, 0), "scale": scale, "enable_gqa": is_grouped}
    options: dict[str, Any] = {name: value for name, value in wanted.items() if name in keywords}
    attended_THD = varlen.varlen_attn(q_THD, k_TKD, v_TKD, starts_N1, starts_N1, longest, longest, **options)
    return cast("Tensor", attended_THD)
