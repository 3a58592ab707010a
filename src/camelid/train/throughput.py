"""How much arithmetic a token costs, and how much of it the device can do."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch

from camelid.kernels.product import product
from camelid.plan.flops import training_flops_per_token
from camelid.plan.workload import mean_seen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.model.base import LanguageModel


def flops_per_token(model: LanguageModel, lengths: Sequence[int]) -> float:
    """FLOPs of training on one token of these packed sequences; `training_flops_per_token` says what counts."""
    return training_flops_per_token(model.config, mean_seen(lengths))


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this device, right now: what MFU is a share of.

    Measured, not looked up: a laptop has no data sheet for what its neighbours leave of it.
    """
    size = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds[1:])
