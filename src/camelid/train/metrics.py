"""`metrics.jsonl`: one line per step, the same fields in every run.

{"step": 1, "loss": 10.4, "bits_per_byte": 3.9, …}
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from camelid.train.records import RecordFile, read_records
from camelid.train.tensorboard import EventFile

if TYPE_CHECKING:
    from pathlib import Path

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
"""Folder beside it that TensorBoard shows: `tensorboard --logdir runs`."""


@dataclass(frozen=True)
class StepMetrics:
    """What is known of one step."""

    step: int
    """Updates made, this one included."""
    loss: float
    """Cross-entropy in nats per token that counts, before the update."""
    bits_per_byte: float | None
    """Cross-entropy in bits per UTF-8 byte of the targets; None where their bytes are not known."""
    learning_rate: float
    gradient_norm: float
    """Of the whole gradient, before clipping."""
    tokens: int
    """Tokens that went through the model in this step."""
    target_tokens: float
    """Weight of the tokens that the loss was taken at."""
    seconds: float
    """Wall time of the step."""
    tokens_per_second: float
    mfu: float
    """Share of the matrix product ceiling measured at the start of the run."""
    validation_loss: float | None = None
    """Cross-entropy in nats per token on held-out data, after the update; None where it was not measured."""
    validation_bits_per_byte: float | None = None
    """The same in bits per UTF-8 byte."""


def bits_per_byte(nats: float, num_bytes: int) -> float | None:
    """Bits per byte of `num_bytes` bytes of text that cost `nats` nats in all."""
    return nats / (math.log(2) * num_bytes) if num_bytes else None


class MetricsFile:
    """Appends to a run's `metrics.jsonl`, and the same to event files for TensorBoard.

    Args:
        path: the file; created if missing.
        after_step: the step that the run goes on from: what is later is dropped.
    """

    def __init__(self, path: Path, after_step: int = 0) -> None:
        self._records = RecordFile(path, StepMetrics, after_step)
        self._events = EventFile(path.parent / TENSORBOARD, after_step + 1)

    def append(self, metrics: StepMetrics) -> None:
        """Write one line.

        Raises:
            ResourceError: the disk is full.
        """
        self._records.append(metrics)
        scalars = {name: value for name, value in asdict(metrics).items() if name != "step" and value is not None}
        self._events.append(metrics.step, scalars)

    def sync(self) -> None:
        """Make sure that all lines are on disk, as before a checkpoint that presumes them."""
        self._records.sync()

    def close(self) -> None:
        """Close the files."""
        self._records.close()
        self._events.close()


def read_metrics(path: Path) -> list[StepMetrics]:
    """The steps in a metrics file; none if there is no file. A last line that was cut short is left out.

    Raises:
        FormatError: another line is not what this version or an earlier one writes.
    """
    return read_records(path, StepMetrics)
