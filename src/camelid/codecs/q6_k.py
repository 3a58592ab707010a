"""Q6_K: 256 weights in 16 sub-blocks of 16; w = d·s·(q − 32) signed byte s per sub-block, 6-bit q (block_q6_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, nibble_bytes, read_halves, read_nibbles
from camelid.codecs.k_search import fit_symmetric_blocks, whole_blocks

if TYPE_CHECKING:
    from torch import Tensor

SHIFTS = (0, 2, 4, 6)
"""Of the four bit pairs in a byte."""


class Q6_K(BlockCodec):
    """6.5625 bits per weight."""

    name = "q6_k"
    block_size = 256
    block_bytes = 210

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales, d (half).

        Each half of the block is 128 weights: 64 bytes of nibbles, low halves before high ones; and 32 bytes that hold
        four bit pairs each, for the weights l, l + 32, l + 64 and l + 96.
        """
        nibbles = read_nibbles(blocks_GK[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
        shifts = torch.tensor(SHIFTS, dtype=torch.uint8, device=blocks_GK.device).reshape(4, 1)
        pairs = (blocks_GK[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
        numbers = (nibbles | (pairs << 4)).reshape(-1, 16, 16).float() - 32
        steps = read_halves(blocks_GK, 208) * blocks_GK[:, 192:208].view(torch.int8).float()
        return (steps.unsqueeze(2) * numbers).reshape(-1, 256)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """Search the scales."""
        rounded = fit_symmetric_blocks(blocks_GS, half=32, half_scales=128)
        numbers = (whole_blocks(rounded.numbers_SN, 256) + 32).to(torch.uint8)
        nibbles = nibble_bytes(numbers.reshape(-1, 128)).reshape(-1, 128)
        shifts = torch.tensor(SHIFTS, dtype=torch.uint8, device=blocks_GS.device).reshape(4, 1)
        pairs = (numbers.reshape(-1, 2, 4, 32) >> 4 << shifts).sum(dim=2, dtype=torch.uint8).reshape(-1, 64)
        scales = rounded.scales_N.view(-1, 16).to(torch.int8).view(torch.uint8)
        return torch.cat([nibbles, pairs, scales, half_bytes(rounded.steps_B.unsqueeze(1))], dim=1)


CODEC = Q6_K()
