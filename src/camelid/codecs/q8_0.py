"""Q8_0: 32 weights as a half-precision scale d and signed bytes q; w = d·q (ggml-common.h, block_q8_0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, read_halves, reciprocal

if TYPE_CHECKING:
    from torch import Tensor


class Q8_0(BlockCodec):
    """8.5 bits per weight."""

    name = "q8_0"
    block_size = 32
    block_bytes = 34

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d (half), 32 signed bytes."""
        return read_halves(blocks_GK, 0) * blocks_GK[:, 2:].view(torch.int8).float()

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """d = max|w| / 127; q is rounded half away from zero."""
        scale = blocks_GS.abs().amax(dim=1, keepdim=True) / 127
        scaled = blocks_GS * reciprocal(scale)
        magnitude = scaled.abs()
        whole = magnitude.floor()
        rounded = (whole + (2 * (magnitude - whole)).floor()).copysign(scaled)
        return torch.cat([half_bytes(scale), rounded.to(torch.int8).view(torch.uint8)], dim=1)


CODEC = Q8_0()
