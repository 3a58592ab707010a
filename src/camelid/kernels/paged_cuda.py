"""Attention of one new token per sequence over keys and values in blocks, read where they lie, on a CUDA device.

The kernels (`paged_triton.py`) are in Triton, which comes with torch for CUDA on Linux. The plain twin is
`camelid.engine.decode_step.DecodeContext` without them: a gathered copy, and torch's attention.

Shape suffixes: B sequences, N blocks of a table, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEAD = 256
"""Dimensions of a head that a program holds at once."""


class PagedAttention(Protocol):
    """What attends to blocks."""

    def __call__(
        self,
        q_BHD: Tensor,
        keys: Tensor,
        values: Tensor,
        tables_BN: Tensor,
        positions_B: Tensor,
        first_keys_B: Tensor | None,
        block_size: int,
        scale: float,
    ) -> Tensor:
        """Attention of queries to the keys at positions `first_keys` … `positions` of their sequence: [B, H, D].

        Args:
            q_BHD: queries; query head h reads key/value head h // (H // K).
            keys: of all blocks, [slots, K, D], contiguous.
            values: likewise.
            tables_BN: int64, each sequence's blocks in order.
            positions_B: int64, of the queries, whose own keys lie in their slots already.
            first_keys_B: int64; None: 0 everywhere.
            block_size: slots of a block.
            scale: factor of the scores before the softmax.
        """


def paged_attention_on(device: torch.device, dtype: torch.dtype, head_dim: int) -> PagedAttention | None:
    """The kernel for heads of this kind on this device, or None where the twin does the work."""
    fits = dtype in (torch.bfloat16, torch.float16, torch.float32) and head_dim <= LARGEST_HEAD
    if device.type != "cuda" or not fits or find_spec("triton") is None:
        return None
    from camelid.kernels.paged_triton import paged_attention  # brings torch's compiler, which a CPU has no use for

    return paged_attention
