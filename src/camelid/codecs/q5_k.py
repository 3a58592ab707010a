"""Q5_K: 256 weights in 8 sub-blocks of 32; w = d·s·q − dmin·m 6-bit s and m per sub-block, 5-bit q (block_q5_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import read_nibbles
from camelid.codecs.k_scales import apply_scales_and_minimums

if TYPE_CHECKING:
    from torch import Tensor


class Q5_K(BlockCodec):
    """5.5 bits per weight; read only."""

    name = "q5_k"
    block_size = 256
    block_bytes = 176

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: as Q4_K, after 32 bytes of which byte l holds in bit j the fifth bit of weight l of sub-block j."""
        sub_blocks = torch.arange(8, dtype=torch.uint8, device=blocks_GK.device).reshape(8, 1)
        fifth_bits = (blocks_GK[:, None, 16:48] >> sub_blocks) & 1
        nibbles = read_nibbles(blocks_GK[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
        return apply_scales_and_minimums(blocks_GK, nibbles | (fifth_bits << 4))


CODEC = Q5_K()
