"""Attention over tokens that lie end to end, whatever sequences they belong to.

A model hands its queries, keys and values to an `AttentionContext`, which alone knows where one sequence ends, the next
begins, and where earlier keys are cached. One model definition so serves packed training, evaluation, chunked prefill
and paged decoding.

Shape suffixes: T tokens of all sequences end to end, H query heads, K key/value heads, D head dimension, B sequences, S
new tokens of one sequence, L tokens of one sequence with its cached past.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class AttentionContext(ABC):
    """Where the T tokens of one forward pass belong."""

    @abstractmethod
    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float) -> Tensor:
        """Causal attention within each sequence, its cached past included.

        Args:
            layer: index of the calling layer, which selects its part of the cache.
            q_THD: queries, already rotated.
            k_TKD: keys, already rotated; query head h reads key/value head h // (H // K).
            v_TKD: values.
            scale: factor of the scores before the softmax.

        Returns:
            The attended values, shaped and typed like `q_THD`.
        """


class PackedContext(AttentionContext):
    """Sequences (documents) packed end to end, without a cache: training and whole-sequence evaluation.

    Args:
        lengths: tokens of each sequence; they sum to T.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Positions that start at 0 in every sequence, as int64 [T]."""
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float) -> Tensor:
        """Causal attention inside each sequence; sequences of one length share one kernel call."""
        assert sum(self.lengths) == len(q_THD), "the sequences' lengths must sum to the tokens"
        if len(set(self.lengths)) == 1:
            num_sequences = len(self.lengths)
            q, k, v = (x.view(num_sequences, -1, *x.shape[1:]) for x in (q_THD, k_TKD, v_TKD))
            return causal_attention(q, k, v, scale=scale).flatten(0, 1)
        documents = zip(*(torch.split(x, list(self.lengths)) for x in (q_THD, k_TKD, v_TKD)), strict=True)
        return torch.cat([causal_attention(q[None], k[None], v[None], scale=scale)[0] for q, k, v in documents])


def causal_attention(
    q_BSHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, *, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Causal attention of the last S of L positions; query s sees keys 0 … L − S + s.

    Args:
        q_BSHD: queries.
        k_BLKD: keys.
        v_BLKD: values.
        scale: factor of the scores before the softmax.
        mask: added to the scores, broadcast to [B, H, S, L], in place of the causal mask: for a caller that shares one
            mask between layers, or pads.

    Returns:
        [B, S, H, D].
    """
    num_new, num_keys = q_BSHD.shape[1], k_BLKD.shape[1]
    if mask is None and 1 < num_new < num_keys:
        mask = torch.ones(num_new, num_keys, dtype=torch.bool, device=q_BSHD.device).tril(num_keys - num_new)
    out_BHSD = F.scaled_dot_product_attention(
        q_BSHD.transpose(1, 2),
        k_BLKD.transpose(1, 2),
        v_BLKD.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and num_new > 1,
        scale=scale,
        enable_gqa=q_BSHD.shape[2] != k_BLKD.shape[2],
    )
    return out_BHSD.transpose(1, 2)
