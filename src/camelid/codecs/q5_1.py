"""Q5_1: 32 weights as a half-precision scale d and minimum m and 5-bit q; w = d·q + m (ggml-common.h, block_q5_1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import bit_bytes, half_bytes, nibble_bytes, read_bits, read_halves, read_nibbles
from camelid.codecs.rounding import round_from_minimum

if TYPE_CHECKING:
    from torch import Tensor


class Q5_1(BlockCodec):
    """6 bits per weight."""

    name = "q5_1"
    block_size = 32
    block_bytes = 24

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d and m (halves), the fifth bits of all weights, 16 bytes of nibbles."""
        numbers = read_nibbles(blocks_GK[:, 8:]) | (read_bits(blocks_GK[:, 4:8]) << 4)
        return read_halves(blocks_GK, 0) * numbers.float() + read_halves(blocks_GK, 2)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """The smallest weight becomes q = 0, the largest q = 31."""
        scale, minimum, numbers = round_from_minimum(blocks_GS, num_levels=32)
        fields = [half_bytes(scale), half_bytes(minimum), bit_bytes(numbers >> 4), nibble_bytes(numbers)]
        return torch.cat(fields, dim=1)


CODEC = Q5_1()
