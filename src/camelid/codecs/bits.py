"""Bytes, nibbles and half-precision numbers inside blocks. Suffixes as in base.py."""

from __future__ import annotations

import torch
from torch import Tensor


def read_halves(blocks_GK: Tensor, start: int) -> Tensor:
    """The IEEE half at byte `start` of every block, as float32 [G, 1]."""
    return blocks_GK[:, start : start + 2].contiguous().view(torch.float16).float()


def half_bytes(values_G1: Tensor) -> Tensor:
    """Numbers rounded to IEEE halves, as uint8 [G, 2]."""
    return values_G1.to(torch.float16).contiguous().view(torch.uint8)


def read_nibbles(bytes_GK: Tensor) -> Tensor:
    """4-bit numbers [G, 2K], those of the low halves of all bytes before those of the high halves."""
    return torch.cat([bytes_GK & 15, bytes_GK >> 4], dim=1)


def nibble_bytes(numbers_GS: Tensor) -> Tensor:
    """The inverse of `read_nibbles`; bits above the fourth are dropped."""
    low, high = (numbers_GS & 15).chunk(2, dim=1)
    return low | (high << 4)


def read_bits(bytes_GK: Tensor) -> Tensor:
    """Single bits [G, 8K], the lowest of each byte first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bytes_GK.device)
    return ((bytes_GK.unsqueeze(2) >> shifts) & 1).reshape(len(bytes_GK), -1)


def bit_bytes(bits_GS: Tensor) -> Tensor:
    """The inverse of `read_bits`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits_GS.device)
    return (bits_GS.reshape(len(bits_GS), -1, 8) << shifts).sum(dim=2, dtype=torch.uint8)


def reciprocal(scale_G1: Tensor) -> Tensor:
    """1 / scale; 0 where the scale is so small that its reciprocal is infinite (its half is 0 then)."""
    inverse = scale_G1.reciprocal()
    return torch.where(inverse.isfinite(), inverse, 0.0)


def read_pairs(bytes_GK: Tensor, width: int) -> Tensor:
    """2-bit numbers [G, 4K]: of every `width` bytes the lowest pairs, then the next ones.

    Args:
        bytes_GK: K a multiple of `width`.
        width: bytes whose pairs belong together.
    """
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=bytes_GK.device).reshape(4, 1)
    return ((bytes_GK.reshape(len(bytes_GK), -1, 1, width) >> shifts) & 3).reshape(len(bytes_GK), -1)


def pair_bytes(numbers_GS: Tensor, width: int) -> Tensor:
    """The inverse of `read_pairs`, for numbers below 4."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=numbers_GS.device).reshape(4, 1)
    pairs = numbers_GS.reshape(len(numbers_GS), -1, 4, width) << shifts
    return pairs.sum(dim=2, dtype=torch.uint8).reshape(len(numbers_GS), -1)
