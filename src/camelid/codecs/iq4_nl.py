"""IQ4_NL: 32 weights as a half-precision scale d and 4-bit q; w = d·T[q], T unevenly spaced (block_iq4_nl)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.codecs.base import BlockCodec
from camelid.codecs.bits import half_bytes, nibble_bytes, read_halves, read_nibbles, reciprocal
from camelid.codecs.k_search import fit_symmetric, square_weights

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""T: denser around zero, where weights are (ggml-common.h, kvalues_iq4nl)."""

CANDIDATES = (*range(-134, -119), *range(107, 121, 2))
"""Where the largest weight is put: around −127, as ggml tries it, and around 113."""


class IQ4_NL(BlockCodec):
    """4.5 bits per weight."""

    name = "iq4_nl"
    block_size = 32
    block_bytes = 18

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode: d (half), 16 bytes of nibbles."""
        levels = _levels(blocks_GK).take(read_nibbles(blocks_GK[:, 2:]).long())
        return read_halves(blocks_GK, 0) * levels

    def pack_blocks(self, blocks_GS: Tensor) -> Tensor:
        """Search the scale."""
        x_SN = blocks_GS.T.contiguous()
        levels = _levels(x_SN)
        scale_N = fit_symmetric(x_SN, square_weights(x_SN, share=1 / 2), CANDIDATES, lambda x: levels.take(_nearest(x)))
        scale_N1 = scale_N.half().float().unsqueeze(1)
        numbers = _nearest(blocks_GS * reciprocal(scale_N1)).to(torch.uint8)
        return torch.cat([half_bytes(scale_N1), nibble_bytes(numbers)], dim=1)


def _levels(like: Tensor) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float32, device=like.device)


def _nearest(x: Tensor) -> Tensor:
    """The place in `LEVELS` of the level next to each number: half-way points are multiples of ½, so a table has it."""
    halves = torch.arange(2 * LEVELS[0], 2 * LEVELS[-1] + 1, device=x.device)
    levels = _levels(x)
    places = torch.bucketize(halves / 2, (levels[1:] + levels[:-1]) / 2, right=True)
    at = (2 * x).floor_().clamp_(2 * LEVELS[0], 2 * LEVELS[-1]).sub_(2 * LEVELS[0])
    return places.take(at.long())


CODEC = IQ4_NL()
