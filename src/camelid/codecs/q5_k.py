"""Q5_K: 256 weights in 8 sub-blocks of 32; w = d·s·q − dmin·m 6-bit s and m per sub-block, 5-bit q (block_q5_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import nibble_bytes, read_nibbles
from camelid.codecs.k_scales import apply_scales_and_minimums, fit_scales_and_minimums, scale_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Q5_K(BlockCodec):
    """5.5 bits per weight."""

    name = "q5_k"
    block_size = 256
    block_bytes = 176

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: as Q4_K, after 32 bytes of which byte l holds in bit j the fifth bit of weight l of sub-block j."""
        fifth_bits = (blocks_GK[:, None, 16:48] >> _sub_blocks(blocks_GK)) & 1
        nibbles = read_nibbles(blocks_GK[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
        return apply_scales_and_minimums(blocks_GK, nibbles | (fifth_bits << 4))

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """Search scales and minimums as for Q4_K, with twice the levels."""
        rounded, numbers_G8S = fit_scales_and_minimums(blocks_GS, num_levels=32)
        fifth_bits = (numbers_G8S >> 4 << _sub_blocks(numbers_G8S)).sum(dim=1, dtype=torch.uint8)
        nibbles = nibble_bytes(numbers_G8S.reshape(-1, 64)).reshape(-1, 128)
        return torch.cat([scale_bytes(rounded), fifth_bits, nibbles], dim=1)


def _sub_blocks(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device).reshape(8, 1)


CODEC = Q5_K()
