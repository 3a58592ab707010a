"""Q3_K: 256 weights in 16 sub-blocks of 16; w = d·(s − 32)·(q − 4), 6-bit s per sub-block, 3-bit q (block_q3_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, nibble_bytes, pair_bytes, read_halves, read_nibbles, read_pairs
from camelid.codecs.k_search import fit_symmetric_blocks, whole_blocks

if TYPE_CHECKING:
    from torch import Tensor


class Q3_K(BlockCodec):
    """3.4375 bits per weight."""

    name = "q3_k"
    block_size = 256
    block_bytes = 110

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: 32 bytes of third bits, 64 bytes of bit pairs, 12 bytes of scales, d (half).

        Byte l of the third bits holds in bit j that of weight 32j + l. The scales' low four bits are nibbles of the
        first 8 bytes, their upper two bits are the bit pairs of the last 4.
        """
        third_bits = (blocks_GK[:, None, :32] >> _eight(blocks_GK)) & 1
        numbers = read_pairs(blocks_GK[:, 32:96], 32) | (third_bits.reshape(-1, 256) << 2)
        scales = read_nibbles(blocks_GK[:, 96:104]) | (read_pairs(blocks_GK[:, 104:108], 4) << 4)
        steps = read_halves(blocks_GK, 108) * (scales.float() - 32)
        return (steps.unsqueeze(2) * (numbers.reshape(-1, 16, 16).float() - 4)).reshape(-1, 256)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """Search the scales."""
        rounded = fit_symmetric_blocks(blocks_GS, half=4, half_scales=32)
        numbers = (whole_blocks(rounded.numbers_SN, 256) + 4).to(torch.uint8)
        third_bits = (numbers.reshape(-1, 8, 32) >> 2 << _eight(numbers)).sum(dim=1, dtype=torch.uint8)
        scales = (rounded.scales_N.view(-1, 16) + 32).to(torch.uint8)
        parts = [third_bits, pair_bytes(numbers & 3, 32), nibble_bytes(scales), pair_bytes(scales >> 4, 4)]
        return torch.cat([*parts, half_bytes(rounded.steps_B.unsqueeze(1))], dim=1)


def _eight(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device).reshape(8, 1)


CODEC = Q3_K()
