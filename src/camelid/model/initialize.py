"""Initial weights that depend on nothing but the seed and a parameter's name."""

from __future__ import annotations

import hashlib

import torch


def fill_normal(parameter: torch.nn.Parameter, name: str, *, std: float, seed: int) -> None:
    """Fill a parameter from N(0, std²).

    Each parameter has a generator of its own, seeded from the seed and its name, and draws in fp32 on the CPU: device,
    dtype, number of threads and the rest of the model make no difference to the draw.

    Args:
        parameter: filled in place, on whatever device and in whatever dtype it has.
        name: its name in the model.
        std: standard deviation.
        seed: the model's seed.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
    with torch.no_grad():
        parameter.copy_(drawn)
