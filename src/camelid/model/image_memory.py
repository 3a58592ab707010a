"""The images of a sequence as its cross-attention layers read them, and who reads which.

A token attends to the images that came last at or before it; images whose tokens stand next to one another count as
one. Tokens before the first image see none, and a layer that attends to images leaves them as they are (llama-models,
models/llama3/multimodal/model.py; transformers lets them attend to everything: see docs/decisions/0014).

Keys and values are computed once, when a sequence is admitted, and belong to the sequence like its cache.

Shape suffixes: T tokens of all sequences end to end, R those of them that see images, S tokens of one stretch, L keys
of all images of one sequence, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


class PromptImage(Protocol):
    """An image that was prepared for a model."""

    @property
    def digest(self) -> bytes:
        """A hash of all that the model makes of it: equal images have equal ones."""


@dataclass(frozen=True)
class ImageMemory:
    """The images of one sequence."""

    keys: tuple[Tensor, ...]
    """Of each cross-attention layer, [L, K, D]: one image after the other, each with as many."""
    values: tuple[Tensor, ...]
    """Likewise."""
    positions: tuple[int, ...]
    """Of each image's token in the sequence, ascending."""
    lengths: tuple[int, ...]
    """Of each image, how many of its keys are of the image itself; the rest is padding."""

    @property
    def num_keys_per_image(self) -> int:
        """Padding included."""
        return len(self.keys[0]) // len(self.positions)

    def seen_from(self, position: int) -> range:
        """The images that the token at a position sees."""
        end = bisect_right(self.positions, position)
        start = max(end - 1, 0)
        while start > 0 and self.positions[start - 1] == self.positions[start] - 1:
            start -= 1
        return range(start, end)


def image_reads(spans: Sequence[range], memories: Sequence[ImageMemory | None] | None) -> ImageReads | None:
    """How the tokens of one forward pass attend to their images; None if none of them sees any.

    Args:
        spans: for each sequence the positions of its tokens.
        memories: for each sequence its images; None where it has none, and instead of the list where nobody has.
    """
    if memories is None:
        return None
    first_tokens = list(accumulate((len(span) for span in spans), initial=0))[:-1]
    stretches = [
        stretch
        for span, memory, first in zip(spans, memories, first_tokens, strict=True)
        if memory is not None
        for stretch in _stretches(span, memory, first)
    ]
    return ImageReads(stretches, sum(map(len, spans))) if stretches else None


class ImageReads:
    """Attention of one forward pass to images. Which token reads what is worked out once, for all layers."""

    def __init__(self, stretches: Sequence[_Stretch], num_tokens: int) -> None:
        self._stretches = stretches
        rows = [row for stretch in stretches for row in stretch.tokens]
        device = stretches[0].memory.keys[0].device
        self._rows_R = None if len(rows) == num_tokens else torch.tensor(rows, device=device)

    def take(self, x_TE: Tensor) -> Tensor:
        """The tokens that see images: [R, E]."""
        return x_TE if self._rows_R is None else x_TE[self._rows_R]

    def put(self, x_TE: Tensor, y_RE: Tensor) -> Tensor:
        """All tokens [T, E], those that see images replaced."""
        return y_RE if self._rows_R is None else x_TE.index_copy(0, self._rows_R, y_RE)

    def attend(self, layer: int, q_RHD: Tensor, *, scale: float) -> Tensor:
        """Attention to the images that each token sees.

        Args:
            layer: index of the calling layer among those that attend to images.
            q_RHD: queries; query head h reads key/value head h // (H // K).
            scale: factor of the scores before the softmax.

        Returns:
            The attended values, shaped and typed like `q_RHD`.
        """
        queries = torch.split(q_RHD, [len(stretch.tokens) for stretch in self._stretches])
        parts = [stretch.attend(layer, q_SHD, scale) for stretch, q_SHD in zip(self._stretches, queries, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive tokens of one sequence that see the same images."""

    tokens: range
    """Among those of all sequences."""
    memory: ImageMemory
    keys: slice
    mask_1L: Tensor | None
    """Which of these keys count; None: all."""

    def attend(self, layer: int, q_SHD: Tensor, scale: float) -> Tensor:
        k_LKD, v_LKD = self.memory.keys[layer][self.keys], self.memory.values[layer][self.keys]
        out_HSD = F.scaled_dot_product_attention(
            q_SHD.transpose(0, 1)[None],
            k_LKD.transpose(0, 1)[None],
            v_LKD.transpose(0, 1)[None],
            attn_mask=self.mask_1L,
            scale=scale,
            enable_gqa=q_SHD.shape[1] != k_LKD.shape[1],
        )[0]
        return out_HSD.transpose(0, 1)


def _stretches(span: range, memory: ImageMemory, first: int) -> Iterator[_Stretch]:
    """Of the tokens of a sequence at positions `span`, which begin at `first` among all, those that see images."""
    bounds = [span.start, *(p for p in memory.positions if span.start < p < span.stop), span.stop]
    for start, stop in pairwise(bounds):
        if seen := memory.seen_from(start):
            tokens = range(first + start - span.start, first + stop - span.start)
            yield _Stretch(tokens, memory, *_visible_keys(memory, seen))


def _visible_keys(memory: ImageMemory, seen: range) -> tuple[slice, Tensor | None]:
    """Of the keys of these images all but the padding, which may lie between them and is masked there."""
    stride = memory.num_keys_per_image
    start, stop = seen.start * stride, (seen.stop - 1) * stride + memory.lengths[seen.stop - 1]
    if all(memory.lengths[image] == stride for image in seen[:-1]):
        return slice(start, stop), None
    mask_IL = torch.arange(stride) < torch.tensor([memory.lengths[image] for image in seen])[:, None]
    return slice(start, stop), mask_IL.flatten()[None, : stop - start].to(memory.keys[0].device)
