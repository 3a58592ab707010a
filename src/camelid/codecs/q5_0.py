"""Q5_0: 32 weights as a half-precision scale d and 5-bit q; w = d·(q − 16) (ggml-common.h, block_q5_0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import bit_bytes, half_bytes, nibble_bytes, read_bits, read_halves, read_nibbles
from camelid.codecs.rounding import round_symmetric

if TYPE_CHECKING:
    from torch import Tensor


class Q5_0(BlockCodec):
    """5.5 bits per weight."""

    name = "q5_0"
    block_size = 32
    block_bytes = 22

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d (half), the fifth bits of all weights, 16 bytes of nibbles."""
        numbers = read_nibbles(blocks_GK[:, 6:]) | (read_bits(blocks_GK[:, 2:6]) << 4)
        return read_halves(blocks_GK, 0) * (numbers.float() - 16)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """The weight of largest magnitude becomes q = 0."""
        scale, numbers = round_symmetric(blocks_GS, num_levels=32)
        return torch.cat([half_bytes(scale), bit_bytes(numbers >> 4), nibble_bytes(numbers)], dim=1)


CODEC = Q5_0()
