"""Rounding a block of weights to a few levels, as ggml's reference quantisers do (ggml-quants.c)."""

from __future__ import annotations

import torch
from torch import Tensor

from camelid.codecs.bits import reciprocal


def round_symmetric(blocks_GS: Tensor, num_levels: int) -> tuple[Tensor, Tensor]:
    """Levels around zero: w ≈ d·(q − L/2), where the weight of largest magnitude is exactly q = 0.

    Returns:
        d as float32 [G, 1]; q as uint8 [G, S] in 0 … L − 1.
    """
    half = num_levels // 2
    largest = blocks_GS.gather(1, blocks_GS.abs().argmax(dim=1, keepdim=True))
    scale = largest / -half
    numbers = blocks_GS * reciprocal(scale) + (half + 0.5)
    return scale, numbers.clamp(0, num_levels - 1).to(torch.uint8)


def round_from_minimum(blocks_GS: Tensor, num_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels from the smallest to the largest weight: w ≈ d·q + m.

    Returns:
        d and m as float32 [G, 1]; q as uint8 [G, S] in 0 … L − 1.
    """
    minimum, maximum = blocks_GS.aminmax(dim=1, keepdim=True)
    scale = (maximum - minimum) / (num_levels - 1)
    numbers = (blocks_GS - minimum) * reciprocal(scale) + 0.5
    return scale, minimum, numbers.clamp(0, num_levels - 1).to(torch.uint8)
