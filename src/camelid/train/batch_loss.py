"""The loss of a model on a batch: what an update differentiates and what a validation reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.model.attention import PackedContext
from camelid.train.losses import chunked_cross_entropy

if TYPE_CHECKING:
    from camelid.data.batch import Batch
    from camelid.model.base import LanguageModel
    from camelid.train.losses import LossSums


def batch_loss(
    model: LanguageModel, batch: Batch, dtype: torch.dtype, *, z_loss: float = 0.0, compiled: bool = False
) -> LossSums:
    """Cross-entropy of the batch's targets, weighted and summed.

    Args:
        model: on the device to compute on, its output matrix dense.
        batch: packed sequences.
        dtype: of the matrix products.
        z_loss: see `chunked_cross_entropy`.
        compiled: likewise.
    """
    output = model.output_matrix
    assert output.weight is not None, "a packed output matrix cannot be trained with"
    device = output.weight.device
    ids_T, positions_T, targets_T, weights_T = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.ids_T, batch.positions_T, batch.targets_T, batch.weights_T)
    )
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden_TE = model(ids_T, positions_T, PackedContext(batch.lengths, device))
    # An autograd function is told what wants a gradient without regard to no_grad, and would make them all.
    weight_VE = output.weight if torch.is_grad_enabled() else output.weight.detach()
    return chunked_cross_entropy(
        hidden_TE, weight_VE, targets_T, weights_T, z_loss=z_loss, compute_dtype=dtype, compiled=compiled
    )
