"""All experts' matrices of a layer, which Hugging Face and GGUF lay out differently.

Hugging Face has them inputs first, gate and up side by side in one tensor: [X, E, 2F] and [X, F, E]. GGUF has them
outputs first, each in a tensor of its own: [X, F, E] twice, and [X, E, F] (llama.cpp, conversion/llama.py). Blocks of
weights run along the last dimension, so what is packed in one layout is not in the other.

Shape suffixes: X experts, O outputs of one of GGUF's tensors, I inputs, N number of those tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.base.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor


def joined_shape(shapes: Sequence[tuple[int, ...]], name: str, where: Path) -> tuple[int, int, int]:
    """The shape of Hugging Face's tensor: (X, I, N · O).

    Raises:
        FormatError: GGUF's tensors do not fit together.
    """
    if len(shapes[0]) != 3 or any(shape != shapes[0] for shape in shapes):
        raise FormatError(
            f"the parts of '{name}' do not fit together: {[list(shape) for shape in shapes]}", where=where
        )
    experts, outputs, inputs = shapes[0]
    return experts, inputs, outputs * len(shapes)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Hugging Face's tensor [X, I, N · O] of GGUF's, each [X, O, I]."""
    experts, outputs, inputs = parts[0].shape
    joined_XIO = torch.empty(experts, inputs, outputs * len(parts), dtype=parts[0].dtype)
    for target_XIO, part_XOI in zip(torch.split(joined_XIO, outputs, dim=-1), parts, strict=True):
        target_XIO.copy_(part_XOI.transpose(1, 2))
    return joined_XIO


def rows_of_part(joined_XIO: Tensor, part: int, num_parts: int, num_rows: int) -> Iterator[Tensor]:
    """One of GGUF's tensors, at most `num_rows` of its rows at a time: [rows, I]."""
    outputs = joined_XIO.shape[-1] // num_parts
    for matrix_IO in joined_XIO:
        for rows_IR in torch.split(matrix_IO[:, part * outputs : (part + 1) * outputs], num_rows, dim=-1):
            yield rows_IR.T.contiguous()
