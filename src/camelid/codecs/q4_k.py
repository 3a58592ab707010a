"""Q4_K: 256 weights in 8 sub-blocks of 32; w = d·s·q − dmin·m 6-bit s and m per sub-block, 4-bit q (block_q4_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import read_nibbles
from camelid.codecs.k_scales import apply_scales_and_minimums

if TYPE_CHECKING:
    from torch import Tensor


class Q4_K(BlockCodec):
    """4.5 bits per weight; read only."""

    name = "q4_k"
    block_size = 256
    block_bytes = 144

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d and dmin (halves), 12 bytes of scales and minimums, 4 chunks of 32 bytes of nibbles."""
        numbers = read_nibbles(blocks_GK[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32)
        return apply_scales_and_minimums(blocks_GK, numbers)


CODEC = Q4_K()
