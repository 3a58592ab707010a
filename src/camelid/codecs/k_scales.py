"""The scales and minimums that Q4_K and Q5_K share (ggml-quants.c, get_scale_min_k4)."""

from __future__ import annotations

import torch
from torch import Tensor

from camelid.codecs.bits import half_bytes, read_halves
from camelid.codecs.k_search import Rounded, fit_from_minimum, mean_size, round_with_minimums, sub_blocks, whole_blocks

SUB_BLOCK = 32
TOP_SCALE = 63
"""Scales and minimums have 6 bits."""

SPREADS = {
    16: sorted(((i - 5) / 5 for i in range(11)), key=abs),
    32: sorted((-1.0, *((i - 3) / 5 for i in range(8))), key=abs),
}
"""Levels → the candidates of `fit_from_minimum`: ggml's range, the plain one first, since the first of equals is kept.

Of 32 levels, −1 leaves 30 steps: weights that were once rounded to 16 levels are then exactly on every second.
"""


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


def fit_scales_and_minimums(blocks_GS: Tensor, num_levels: int) -> tuple[Rounded, Tensor]:
    """The search for blocks of 8 sub-blocks; a weight's error counts by the sub-block's root mean square plus |w|.

    Args:
        blocks_GS: finite float32 weights, 256 to a block.
        num_levels: of q, 16 or 32.

    Returns:
        Everything but q for `scale_bytes`; q as uint8 [G, 8, 32].
    """
    x_SN = sub_blocks(blocks_GS, SUB_BLOCK)
    weights_SN = x_SN.abs() + mean_size(x_SN)
    scale_N, minimum_N = fit_from_minimum(x_SN, weights_SN, num_levels, SPREADS[num_levels])
    rounded = round_with_minimums(
        x_SN, weights_SN, scale_N, minimum_N, per_block=8, top_scale=TOP_SCALE, top=num_levels - 1
    )
    return rounded, whole_blocks(rounded.numbers_SN, 256).reshape(-1, 8, SUB_BLOCK).to(torch.uint8)


def scale_bytes(rounded: Rounded) -> Tensor:
    """The first 16 bytes of a block, as `apply_scales_and_minimums` reads them."""
    scales_G8, minimums_G8 = (one.view(-1, 8).to(torch.uint8) for one in (rounded.scales_N, rounded.minimums_N))
    first = scales_G8[:, :4] | (scales_G8[:, 4:] >> 4 << 6)
    second = minimums_G8[:, :4] | (minimums_G8[:, 4:] >> 4 << 6)
    mixed = (scales_G8[:, 4:] & 15) | (minimums_G8[:, 4:] << 4)
    halves = [half_bytes(rounded.steps_B.unsqueeze(1)), half_bytes(rounded.depths_B.unsqueeze(1))]
    return torch.cat([*halves, first, second, mixed], dim=1)
