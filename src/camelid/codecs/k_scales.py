"""The scales and minimums that Q4_K and Q5_K share (ggml-quants.c, get_scale_min_k4)."""

from __future__ import annotations

import torch
from torch import Tensor

from camelid.codecs.bits import read_halves


def apply_scales_and_minimums(blocks_GK: Tensor, numbers_G8S: Tensor) -> Tensor:
    """d·s·q − dmin·m for 8 sub-blocks of 32.

    Args:
        blocks_GK: blocks that start with d and dmin (halves) and 12 bytes that hold eight 6-bit s and eight 6-bit m.
        numbers_G8S: q.

    Returns:
        float32 [G, 256].
    """
    first, second, mixed = torch.split(blocks_GK[:, 4:16], 4, dim=1)
    scales = torch.cat([first & 63, (mixed & 15) | (first >> 6 << 4)], dim=1).float()
    minimums = torch.cat([second & 63, (mixed >> 4) | (second >> 6 << 4)], dim=1).float()
    steps_G81 = (read_halves(blocks_GK, 0) * scales).unsqueeze(2)
    offsets_G81 = (read_halves(blocks_GK, 2) * minimums).unsqueeze(2)
    return (steps_G81 * numbers_G8S.float() - offsets_G81).reshape(-1, 256)
