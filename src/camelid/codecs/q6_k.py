"""Q6_K: 256 weights in 16 sub-blocks of 16; w = d·s·(q − 32) signed byte s per sub-block, 6-bit q (block_q6_K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import read_halves, read_nibbles

if TYPE_CHECKING:
    from torch import Tensor


class Q6_K(BlockCodec):
    """6.5625 bits per weight; read only."""

    name = "q6_k"
    block_size = 256
    block_bytes = 210

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales, d (half).

        Each half of the block is 128 weights: 64 bytes of nibbles, low halves before high ones; and 32 bytes that hold
        four bit pairs each, for the weights l, l + 32, l + 64 and l + 96.
        """
        nibbles = read_nibbles(blocks_GK[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks_GK.device).reshape(4, 1)
        pairs = (blocks_GK[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
        numbers = (nibbles | (pairs << 4)).reshape(-1, 16, 16).float() - 32
        steps = read_halves(blocks_GK, 208) * blocks_GK[:, 192:208].view(torch.int8).float()
        return (steps.unsqueeze(2) * numbers).reshape(-1, 256)


CODEC = Q6_K()
