"""A whole transformer block over a paged cache in one native call: pre-norm, rotary attention, SwiGLU, no gradients.

It runs the kernels of `product`, `elementwise` and `paged` one after the other and gives their bits. What it saves is
what lies between them: a step that reads all of a model's weights leaves none of Python's own memory in the processor's
cache, and then a dozen calls per block cost as much as the kernels of a small model (docs/decisions/0018).

Shape suffixes: T tokens, E hidden size, D head dimension, F width of the feed-forward layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from camelid import kernels
from camelid.kernels.attention import vector_width
from camelid.kernels.product import multiplies_natively

if TYPE_CHECKING:
    from torch import Tensor

    from camelid.kernels.paged import PagedLayout


KEPT = 2**24
"""Floats: 64 MB."""


@dataclass(frozen=True, slots=True)
class PagedPlace:
    """Where a step's tokens lie in one layer's cache."""

    keys: Tensor
    """fp32 [slots, K, D], contiguous."""
    values: Tensor
    slots_T: Tensor
    """int64 on the CPU: where the step's keys and values go."""
    layout: PagedLayout
    workspace: Workspace


class Workspace:
    """Memory for what lies between a block's kernels, kept from block to block: fresh pages cost more than the norms.

    (Reading 16 prompts of 160 tokens with a 15M model: 114,000 page faults without it, a third of the time.) Beyond
    `KEPT`, where a block computes for long, it is not kept.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.float32, device="cpu")

    def of(self, num_floats: int) -> Tensor:
        """At least so many floats, whatever they hold; those handed out before are void."""
        if num_floats > KEPT:
            return torch.empty(num_floats, dtype=torch.float32, device="cpu")
        if len(self._memory) < num_floats:
            self._memory = torch.empty(num_floats, dtype=torch.float32, device="cpu")
        return self._memory


class BlockWeights(NamedTuple):
    """Of the projections, each [outputs, inputs], and of the norms before them."""

    input_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    feed_forward_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


def block_runs_on(x_TE: Tensor, weights: BlockWeights, head_dim: int) -> bool:
    """Whether `transformer_block` takes these: fp32 on a CPU that has the kernels, widths of whole vector registers."""
    width = vector_width()
    return (
        width is not None
        and not torch.is_grad_enabled()
        and len(x_TE) > 0
        and x_TE.is_contiguous()
        and head_dim % width == 0
        and head_dim >= 2 * width
        and x_TE.shape[1] % width == 0
        and len(weights.gate) % width == 0
        and multiplies_natively(x_TE, *(weight for weight in weights if weight.ndim == 2))
        and all(weight.shape == x_TE.shape[1:] for weight in (weights.input_norm, weights.feed_forward_norm))
        and all(weight.is_cpu and weight.dtype == torch.float32 and weight.is_contiguous() for weight in weights)
    )


def transformer_block(
    x_TE: Tensor,
    weights: BlockWeights,
    cos_T1D: Tensor,
    sin_T1D: Tensor,
    place: PagedPlace,
    *,
    eps: float,
    scale: float,
    instruction_set: str | None = None,
) -> Tensor:
    """h = x + attention(norm(x)); h + feed_forward(norm(h)): [T, E].

    Args:
        x_TE: for which `block_runs_on` holds, as the weights.
        weights: of the block.
        cos_T1D: fp32, contiguous, as `camelid.kernels.elementwise.rotate` takes them.
        sin_T1D: likewise.
        place: of the tokens in this layer's cache, which is written.
        eps: of the norms.
        scale: of the scores before the softmax.
        instruction_set: one of `camelid.kernels.instruction_sets()` instead of the chosen one.
    """
    (tokens, hidden), (num_key_heads, head_dim) = x_TE.shape, place.keys.shape[1:]
    q_width, k_width, width = len(weights.q), num_key_heads * head_dim, len(weights.gate)
    assert weights.q.shape[1] == weights.gate.shape[1] == hidden
    assert weights.k.shape == weights.v.shape == (k_width, hidden)
    assert weights.o.shape == (hidden, q_width)
    assert weights.up.shape == weights.gate.shape
    assert weights.down.shape == (hidden, width)
    assert q_width % k_width == 0
    assert cos_T1D.shape == sin_T1D.shape == (tokens, 1, head_dim)
    for x in (cos_T1D, sin_T1D, place.keys, place.values):
        assert x.dtype == torch.float32
        assert x.is_contiguous()
    assert place.keys.shape == place.values.shape
    assert len(place.slots_T) == tokens
    workspace = place.workspace.of(tokens * 3 * (hidden + q_width + k_width + width))
    out_TE = torch.empty_like(x_TE)
    layout = place.layout
    kernels.native().transformer_block(
        instruction_set or kernels.instruction_set(),
        (tokens, hidden, q_width // head_dim, num_key_heads, head_dim, width),
        eps,
        scale,
        [weight.data_ptr() for weight in weights],
        x_TE.data_ptr(),
        cos_T1D.data_ptr(),
        sin_T1D.data_ptr(),
        (
            layout.sequences_N4.data_ptr(),
            len(layout.sequences_N4),
            layout.tables.data_ptr(),
            layout.block_size,
            place.slots_T.data_ptr(),
            place.keys.data_ptr(),
            place.values.data_ptr(),
        ),
        workspace.data_ptr(),
        out_TE.data_ptr(),
        torch.get_num_threads(),
    )
    return out_TE
