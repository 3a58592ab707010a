"""Q4_1: 32 weights as a half-precision scale d and minimum m and 4-bit q; w = d·q + m (ggml-common.h, block_q4_1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, nibble_bytes, read_halves, read_nibbles
from camelid.codecs.rounding import round_from_minimum

if TYPE_CHECKING:
    from torch import Tensor


class Q4_1(BlockCodec):
    """5 bits per weight."""

    name = "q4_1"
    block_size = 32
    block_bytes = 20

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d and m (halves), 16 bytes of nibbles."""
        return read_halves(blocks_GK, 0) * read_nibbles(blocks_GK[:, 4:]).float() + read_halves(blocks_GK, 2)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """The smallest weight becomes q = 0, the largest q = 15."""
        scale, minimum, numbers = round_from_minimum(blocks_GS, num_levels=16)
        return torch.cat([half_bytes(scale), half_bytes(minimum), nibble_bytes(numbers)], dim=1)


CODEC = Q4_1()
