"""Rows of a batch: sequences packed end to end to a fixed length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from camelid.data.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """The sequences of one sample, N tokens together."""

    ids_N: NDArray[np.int64]
    targets_N: NDArray[np.int64]
    weights_N: NDArray[np.float32]
    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to N."""
    num_target_bytes: int


def join_rows(rows: Sequence[Row], row_length: int, padding_id: int, first_sample: int) -> Batch:
    """The rows as one batch of `len(rows) * row_length` tokens; a short row ends in a sequence of padding."""
    padded = [_padded(row, row_length, padding_id) for row in rows]
    lengths = tuple(length for row in padded for length in row.lengths)
    lengths_N = np.array(lengths)
    starts_N = np.cumsum(lengths_N) - lengths_N
    return Batch(
        ids_T=np.concatenate([row.ids_N for row in padded]),
        targets_T=np.concatenate([row.targets_N for row in padded]),
        weights_T=np.concatenate([row.weights_N for row in padded]),
        positions_T=np.arange(lengths_N.sum()) - np.repeat(starts_N, lengths_N),
        lengths=lengths,
        num_target_bytes=sum(row.num_target_bytes for row in rows),
        first_sample=first_sample,
    )


def _padded(row: Row, row_length: int, padding_id: int) -> Row:
    missing = row_length - len(row.ids_N)
    if not missing:
        return row
    padding = np.full(missing, padding_id, dtype=np.int64)
    return Row(
        ids_N=np.concatenate([row.ids_N, padding]),
        targets_N=np.concatenate([row.targets_N, padding]),
        weights_N=np.concatenate([row.weights_N, np.zeros(missing, dtype=np.float32)]),
        lengths=(*row.lengths, missing),
        num_target_bytes=row.num_target_bytes,
    )
