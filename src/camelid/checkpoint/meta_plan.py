"""Tensors on their way into Meta's files: each is made of some of the checkpoint's, and cut into shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from camelid.checkpoint.weights import Weight


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of Meta's files and what it is made of."""

    name: str
    sources: tuple[Weight, ...]
    cut: Callable[[Sequence[Tensor], int], Iterable[Tensor]]
    """(the sources, number of shards) → every shard's part."""

    @property
    def dtype(self) -> torch.dtype:
        """Of every part."""
        return self.sources[0].dtype

    def part_shape(self, count: int) -> tuple[int, ...]:
        """Of a shard's part: what cutting gives of tensors that have a shape and no contents."""
        empty = [torch.empty(weight.shape, device="meta") for weight in self.sources]
        return tuple(next(iter(self.cut(empty, count))).shape)

    def num_bytes(self, count: int) -> int:
        """Of all shards' parts."""
        return count * torch.Size(self.part_shape(count)).numel() * self.dtype.itemsize


def parts(tensor: Tensor, axis: int | None, count: int) -> Sequence[Tensor]:
    """Every shard's part of a tensor that is split along an axis; None: each has the whole."""
    return [tensor] * count if axis is None else tensor.chunk(count, dim=axis)
