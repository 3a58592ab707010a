"""How much arithmetic a token costs, and how much of it the device can do."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.model.base import LanguageModel


def flops_per_token(model: LanguageModel, lengths: Sequence[int]) -> float:
    """6·P + 6·L·S·d for one token of training: P parameters, L layers, S tokens seen, d width of all heads.

    6·P covers the products with the weights (one multiply and one add, forward and twice backward); an embedding that
    is not tied is only looked up and does not count. Attention over S tokens costs 12·S·d per layer and half of it
    under a causal mask. S is what a token of these packed sequences finds on average. Source: Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B; Kaplan et al. 2020, arXiv 2001.08361, §2.1.
    """
    config = model.config
    num_multiplied = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        num_multiplied -= config.vocab_size * config.hidden_size
    mean_length = sum(length**2 for length in lengths) / max(sum(lengths), 1)
    width = config.num_attention_heads * config.head_dim
    return 6 * num_multiplied + 6 * config.num_hidden_layers * mean_length * width


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
        product = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    del product
    return 2 * size**3 / median(seconds[1:])
