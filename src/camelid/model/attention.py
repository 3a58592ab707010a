"""Attention over tokens that lie end to end, whatever sequences they belong to.

A model hands its queries, keys and values to an `AttentionContext`, which alone knows where one sequence ends, the next
begins, and where earlier keys are cached. One model definition so serves packed training, evaluation, chunked prefill
and paged decoding.

Shape suffixes: T tokens of all sequences end to end, H query heads, K key/value heads, D head dimension, B sequences, S
new tokens of one sequence, L tokens of one sequence with its cached past.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, overload

import torch
from torch.nn import functional as F

from camelid.kernels.attention import attention_runs_on, packed_attention
from camelid.kernels.flash import flash_attention, flash_runs_on, layout
from camelid.model.image_memory import ImageReads, image_reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from camelid.kernels.stack import PagedPlace
    from camelid.model.image_memory import ImageMemory


@dataclass(frozen=True, slots=True)
class Window:
    """A query sees its own position and the `size` − 1 before it (Beltagy et al. 2020, arXiv 2004.05150, §3.1)."""

    size: int

    @overload
    def first_key(self, position: int) -> int: ...
    @overload
    def first_key(self, position: Tensor) -> Tensor: ...
    def first_key(self, position: int | Tensor) -> int | Tensor:
        """The first position that a query sees; below 0 where it sees everything."""
        return position - self.size + 1


@dataclass(frozen=True, slots=True)
class Chunks:
    """A sequence is cut into pieces of `size` positions; a query sees only its own piece, up to itself."""

    size: int

    @overload
    def first_key(self, position: int) -> int: ...
    @overload
    def first_key(self, position: Tensor) -> Tensor: ...
    def first_key(self, position: int | Tensor) -> int | Tensor:
        """The first position that a query sees."""
        return position // self.size * self.size

    def pieces(self, length: int) -> list[int]:
        """The lengths of a sequence's pieces."""
        return [min(self.size, length - start) for start in range(0, length, self.size)]


Reach = Window | Chunks
"""How far back a query sees, where that is not to the beginning of its sequence."""


class AttentionContext(ABC):
    """Where the T tokens of one forward pass belong."""

    images: ImageReads | None = None
    """How tokens attend to the images of their sequence; None: no sequence has any."""

    wanted_rows: Tensor | None = None
    """Numbers of the tokens whose final hidden states are asked for, int64, ascending; None: everybody's."""

    def wanted(self, x_TE: Tensor) -> Tensor:
        """The rows of the tokens that are asked for: [W, E]."""
        return x_TE if self.wanted_rows is None else x_TE[self.wanted_rows]

    def paged_place(self) -> PagedPlace | None:
        """Where the tokens lie in the cache, for blocks that run in one native call; None: they cannot."""
        return None

    @abstractmethod
    def attend(
        self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float, reach: Reach | None = None
    ) -> Tensor:
        """Causal attention within each sequence, its cached past included.

        Args:
            layer: index of the calling layer, which selects its part of the cache.
            q_THD: queries, already rotated.
            k_TKD: keys, already rotated; query head h reads key/value head h // (H // K).
            v_TKD: values.
            scale: factor of the scores before the softmax.
            reach: how far back each query sees; None: to the beginning of its sequence.

        Returns:
            The attended values, shaped and typed like `q_THD`.
        """


class PackedContext(AttentionContext):
    """Sequences (documents) packed end to end, without a cache: training and whole-sequence evaluation.

    Args:
        lengths: tokens of each sequence; they sum to T.
        device: where the tokens are. On a CUDA device, 16-bit heads of all sequences then attend in one call.
        images: what each sequence has of images, None where it has none; left out: nobody has any.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | None = None,
        *,
        images: Sequence[ImageMemory | None] | None = None,
    ) -> None:
        self.lengths = tuple(lengths)
        self.images = image_reads([range(length) for length in lengths], images)
        self._device = device
        self._layout = layout(self.lengths, device) if device is not None and device.type == "cuda" else None
        self._pieces: dict[Chunks, PackedContext] = {}

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Positions that start at 0 in every sequence, as int64 [T]."""
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])

    @cached_property
    def _starts_N1(self) -> Tensor:
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int64, device="cpu")

    def attend(
        self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, scale: float, reach: Reach | None = None
    ) -> Tensor:
        """Causal attention inside each sequence; by torch, sequences of one length share one kernel call."""
        if self._layout is not None and reach is None and flash_runs_on(q_THD, k_TKD, v_TKD):
            # First of all: a compiled model must not look at the lengths, or it would be compiled for these alone.
            return flash_attention(q_THD, k_TKD, v_TKD, self._layout, scale=scale)
        assert sum(self.lengths) == len(q_THD), "the sequences' lengths must sum to the tokens"
        if reach is not None and max(self.lengths) > reach.size:
            return self._attend_within(reach, layer, q_THD, k_TKD, v_TKD, scale)
        if attention_runs_on(q_THD, k_TKD, v_TKD):
            return packed_attention(q_THD, k_TKD, v_TKD, self._starts_N1, scale=scale)
        if len(set(self.lengths)) == 1:
            num_sequences = len(self.lengths)
            q, k, v = (x.view(num_sequences, -1, *x.shape[1:]) for x in (q_THD, k_TKD, v_TKD))
            return causal_attention(q, k, v, scale=scale).flatten(0, 1)
        documents = zip(*(torch.split(x, list(self.lengths)) for x in (q_THD, k_TKD, v_TKD)), strict=True)
        return torch.cat([causal_attention(q[None], k[None], v[None], scale=scale)[0] for q, k, v in documents])

    def _attend_within(
        self, reach: Reach, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scale: float
    ) -> Tensor:
        """Pieces of a sequence are sequences of their own; under a window, each sequence attends behind a mask."""
        if isinstance(reach, Chunks):
            if reach not in self._pieces:
                pieces = [piece for length in self.lengths for piece in reach.pieces(length)]
                self._pieces[reach] = PackedContext(pieces, self._device)
            return self._pieces[reach].attend(layer, q_THD, k_TKD, v_TKD, scale=scale)
        documents = zip(*(torch.split(x, list(self.lengths)) for x in (q_THD, k_TKD, v_TKD)), strict=True)
        masks = {n: visible_keys(range(n), 0, reach, q_THD.device) for n in set(self.lengths)}
        return torch.cat(
            [causal_attention(q[None], k[None], v[None], scale=scale, mask=masks[len(q)])[0] for q, k, v in documents]
        )


def visible_keys(queries: range, first: int, reach: Reach | None, device: torch.device) -> Tensor:
    """Which of the keys at positions `first` … the last query's own each query sees: bool [S, L].

    Args:
        queries: the positions of consecutive queries.
        first: the position of the first key.
        reach: how far back a query sees; None: to the first key.
        device: where the answer is wanted.
    """
    queries_S1 = torch.arange(queries.start, queries.stop, device=device)[:, None]
    keys_L = torch.arange(first, queries.stop, device=device)
    visible_SL = keys_L <= queries_S1
    return visible_SL if reach is None else visible_SL & (keys_L >= reach.first_key(queries_S1))


def causal_attention(
    q_BSHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, *, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Causal attention of the last S of L positions; query s sees keys 0 … L − S + s.

    Args:
        q_BSHD: queries.
        k_BLKD: keys.
        v_BLKD: values.
        scale: factor of the scores before the softmax.
        mask: added to the scores, or bool and true where they count, broadcast to [B, H, S, L], in place of the causal
            mask: for a caller that shares one mask between layers, pads, or sees less far.

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
