"""The layers that Llama-family blocks are made of.

Shape suffixes: T tokens, E hidden size, F width of the feed-forward layer, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from camelid.kernels.elementwise import rms_norm, runs_natively
from camelid.model.linear import Linear, Matrix, project_gated

if TYPE_CHECKING:
    from torch import Tensor


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) in fp32, cast back, then times the weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    The cast comes before the weight, as in Llama's reference code; in bf16 the other order gives other bits.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.eps = eps

    def forward(self, x_TE: Tensor) -> Tensor:
        """[T, E] → [T, E]."""
        if runs_natively(x_TE, self.weight):
            return rms_norm(x_TE, self.weight, self.eps)
        return F.rms_norm(x_TE.float(), self.weight.shape, eps=self.eps).to(x_TE.dtype) * self.weight


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) ⊙ up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x_TE: Tensor) -> Tensor:
        """[T, E] → [T, E]."""
        down_TE: Tensor = self.down_proj(project_gated(x_TE, self.gate_proj, self.up_proj))
        return down_TE


class Embedding(Matrix):
    """A vector for every token id; the vectors also score the vocabulary where a model ties its output to them."""

    def forward(self, ids_T: Tensor) -> Tensor:
        """[T] → [T, E]."""
        return self.rows(ids_T)


def feed_forward_width(hidden_size: int, multiple_of: int = 256, ffn_dim_multiplier: float | None = None) -> int:
    """The width that Meta's `params.json` stands for: 8/3 of the hidden size, scaled, rounded up to a multiple.

    Source: llama-models, models/llama3/model.py; integer arithmetic in the reference's order.
    """
    width = int(2 * (4 * hidden_size) / 3)
    if ffn_dim_multiplier is not None:
        width = int(ffn_dim_multiplier * width)
    return multiple_of * -(-width // multiple_of)
