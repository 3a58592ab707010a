"""A matrix kept in a block format: bytes and the shape they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedTensor:
    """Blocks of a weight format, row by row.

    Every row holds whole blocks, so rows can be taken, permuted and split without unpacking.
    """

    data: Tensor
    """uint8 [rows, bytes per row], contiguous; may be a memory-mapped, read-only view. Formats for devices have their
    own."""
    format: str
    """A key of `camelid.codecs.FORMATS`, or of `DEVICE_FORMATS`."""
    shape: tuple[int, ...]
    """The logical shape; the last dimension is the packed one."""
