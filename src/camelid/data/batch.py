"""What training takes: tokens of several sequences end to end, their targets, and where the loss is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """T tokens of packed sequences. Attention stays inside each of them."""

    ids_T: NDArray[np.int64]
    targets_T: NDArray[np.int64]
    """The token that follows each one in its own sequence; undefined where the weight is 0."""
    weights_T: NDArray[np.float32]
    """What each target counts in the loss: 0 at a sequence's last token, in a prompt, in padding."""
    positions_T: NDArray[np.int64]
    """Position of each token in its own sequence, from 0."""
    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to T."""
    num_target_bytes: int
    """UTF-8 bytes of the targets that count, which turn a loss in nats per token into bits per byte."""
    first_sample: int
    """Global number of the batch's first sample, which names the batch in messages."""


class BatchSource(Protocol):
    """Batches as a function of their number alone: any of them can be had at any time, in any process."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data and the settings; a checkpoint resumes only on the same."""

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0; goes on past one epoch in a new order."""
