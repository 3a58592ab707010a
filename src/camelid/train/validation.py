"""Held-out loss during training, measured without a trace in the run."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from camelid.base.errors import TrainingError
from camelid.train.batch_loss import batch_loss
from camelid.train.metrics import bits_per_byte

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.data.batch import Batch
    from camelid.model.base import LanguageModel


class ValidationSource(Protocol):
    """Held-out data, the same batches each time."""

    def in_order(self) -> Iterator[Batch]:
        """Every row once."""


class HeldOutLoss(NamedTuple):
    """What a model does not know yet of held-out data."""

    loss: float
    """Cross-entropy in nats per token that counts."""
    bits_per_byte: float | None
    """Cross-entropy in bits per UTF-8 byte of the targets; None where their bytes are not known."""


def held_out_loss(
    model: LanguageModel, source: ValidationSource, dtype: torch.dtype, num_batches: int = 0
) -> HeldOutLoss:
    """The loss on held-out data, over all tokens alike whatever batch they are in.

    Args:
        model: is in evaluation mode meanwhile.
        source: the data.
        dtype: of the matrix products.
        num_batches: how many of its first batches to take; 0: all.

    Raises:
        TrainingError: no token in it counts.
    """
    nats, weight, num_bytes = 0.0, 0.0, 0
    with undisturbed(model), torch.no_grad():
        for batch in islice(source.in_order(), num_batches or None):
            nats += float(batch_loss(model, batch, dtype).cross_entropy)
            weight += float(batch.weights_T.sum(dtype="float64"))
            num_bytes += batch.num_target_bytes
    if weight <= 0:
        raise TrainingError("no token of the validation data counts in the loss")
    return HeldOutLoss(nats / weight, bits_per_byte(nats, num_bytes))


@contextmanager
def undisturbed(model: LanguageModel) -> Iterator[None]:
    """The model in evaluation mode; afterwards its mode and the generators are as if nothing had happened."""
    training = model.training
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            model.train(training)
