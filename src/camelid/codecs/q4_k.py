"""Q4_K: 256 weights in 8 sub-blocks of 32; w = d·s·q − dmin·m 6-bit s and m per sub-block, 4-bit q (block_q4_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import nibble_bytes, read_nibbles
from camelid.codecs.k_scales import apply_scales_and_minimums, fit_scales_and_minimums, scale_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Q4_K(BlockCodec):
    """4.5 bits per weight."""

    name = "q4_k"
    block_size = 256
    block_bytes = 144

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d and dmin (halves), 12 bytes of scales and minimums, 4 chunks of 32 bytes of nibbles."""
        numbers = read_nibbles(blocks_GK[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32)
        return apply_scales_and_minimums(blocks_GK, numbers)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """Search scales and minimums; each chunk holds two sub-blocks, low nibbles before high ones."""
        rounded, numbers_G8S = fit_scales_and_minimums(blocks_GS, num_levels=16)
        nibbles = nibble_bytes(numbers_G8S.reshape(-1, 64)).reshape(-1, 128)
        return torch.cat([scale_bytes(rounded), nibbles], dim=1)


CODEC = Q4_K()
