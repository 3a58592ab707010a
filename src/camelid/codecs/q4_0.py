"""Q4_0: 32 weights as a half-precision scale d and 4-bit q; w = d·(q − 8) (ggml-common.h, block_q4_0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, nibble_bytes, read_halves, read_nibbles
from camelid.codecs.rounding import round_symmetric

if TYPE_CHECKING:
    from torch import Tensor


class Q4_0(BlockCodec):
    """4.5 bits per weight."""

    name = "q4_0"
    block_size = 32
    block_bytes = 18

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d (half), 16 bytes of nibbles."""
        return read_halves(blocks_GK, 0) * (read_nibbles(blocks_GK[:, 2:]).float() - 8)

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """The weight of largest magnitude becomes q = 0."""
        scale, numbers = round_symmetric(blocks_GS, num_levels=16)
        return torch.cat([half_bytes(scale), nibble_bytes(numbers)], dim=1)


CODEC = Q4_0()
