"""Q2_K: 256 weights in 16 sub-blocks of 16; w = d·s·q − dmin·m, 4-bit s and m per sub-block, 2-bit q (block_q2_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, pair_bytes, read_halves, read_pairs
from camelid.codecs.k_search import fit_from_minimum, mean_size, round_with_minimums, sub_blocks, whole_blocks

if TYPE_CHECKING:
    from torch import Tensor

SPREADS = [i / 5 - 0.5 for i in range(8)]
"""The candidates of `fit_from_minimum`: ggml's range."""


class Q2_K(BlockCodec):
    """2.625 bits per weight."""

    name = "q2_k"
    block_size = 256
    block_bytes = 84

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: 16 bytes with s in the low and m in the high nibble, 64 bytes of bit pairs, d and dmin (halves)."""
        numbers = read_pairs(blocks_GK[:, 16:80], 32).reshape(-1, 16, 16).float()
        steps = read_halves(blocks_GK, 80) * (blocks_GK[:, :16] & 15).float()
        depths = read_halves(blocks_GK, 82) * (blocks_GK[:, :16] >> 4).float()
        return (steps.unsqueeze(2) * numbers - depths.unsqueeze(2)).reshape(-1, 256)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """Search scales and minimums; errors count by magnitude plus a sixteenth of the root mean square."""
        x_SN = sub_blocks(blocks_GS, 16)
        weights_SN = x_SN.abs() + mean_size(x_SN) / 16
        scale_N, minimum_N = fit_from_minimum(x_SN, weights_SN, 4, SPREADS)
        rounded = round_with_minimums(x_SN, weights_SN, scale_N, minimum_N, per_block=16, top_scale=15, top=3)
        scales, minimums = (one.view(-1, 16).to(torch.uint8) for one in (rounded.scales_N, rounded.minimums_N))
        numbers = pair_bytes(whole_blocks(rounded.numbers_SN, 256).to(torch.uint8), 32)
        halves = [half_bytes(one.unsqueeze(1)) for one in (rounded.steps_B, rounded.depths_B)]
        return torch.cat([scales | (minimums << 4), numbers, *halves], dim=1)


CODEC = Q2_K()
