"""All of a model's transformer blocks over a paged cache in one native call: pre-norm, rotary attention, SwiGLU.

It runs the kernels of `product`, `elementwise` and `paged` one after the other and gives their bits, without gradients.
What it saves is what lies between them: a kernel that reads weights leaves none of Python's own memory in the
processor's cache, and then a dozen calls per block cost as much as the kernels of a small model (docs/decisions/0018).

Shape suffixes: T tokens, W those that are wanted, E hidden size, Q width of the queries, K of the keys, F of the
feed-forward layer, D head dimension, N sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter, eq
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from camelid import kernels
from camelid.kernels.attention import vector_width
from camelid.kernels.product import multiplies_natively

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.kernels.paged import PagedLayout


KEPT = 2**24
"""Floats: 64 MB."""

KINDS = {Tensor, torch.nn.Parameter}
"""Of weights; others may have no address."""


class Workspace:
    """Memory for what lies between kernels, kept from step to step: fresh pages cost more than the norms.

    (Reading 16 prompts of 160 tokens with a 15M model: 114,000 page faults without it, a third of the time.) Beyond
    `KEPT`, where a block computes for long, it is not kept.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.float32, device="cpu")

    def of(self, num_floats: int) -> Tensor:
        """At least so many floats, whatever they hold; those handed out before are void."""
        if num_floats > KEPT:
            return torch.empty(num_floats, dtype=torch.float32, device="cpu")
        if self._memory.shape[0] < num_floats:
            self._memory = torch.empty(num_floats, dtype=torch.float32, device="cpu")
        return self._memory


@dataclass(frozen=True, slots=True)
class Wanted:
    """Some of a step's tokens: the last ones of some of its sequences."""

    rows_W: Tensor
    """int64 on the CPU, ascending."""
    sequences_N4: Tensor
    """As the step's `PagedLayout` has them, but of these tokens, counted among them."""


@dataclass(frozen=True, slots=True)
class PagedPlace:
    """Where a step's tokens lie in the cache."""

    keys: Sequence[Tensor]
    """Of each layer: fp32 [slots, heads, D], contiguous."""
    values: Sequence[Tensor]
    slots_T: Tensor
    """int64 on the CPU: where the step's keys and values go."""
    layout: PagedLayout
    wanted: Wanted | None
    """Whose result is asked for; None: everybody's."""
    workspace: Workspace


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks that follow each other."""

    weights: Sequence[Tensor]
    """Of each block: norm [E], projections to queries [Q, E], keys [K, E], values [K, E] and back [E, Q], norm [E],
    gate [F, E], up [F, E], down [E, F]. Behind them that of the last norm, if there is one."""
    epsilons: Sequence[float]
    """Of each norm, in the same order."""
    layers: Sequence[int]
    """Which part of the cache each block has."""
    scales: Sequence[float]
    """Of each block's scores before the softmax."""
    head_dim: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of queries, of keys and of the feed-forward layers."""
        queries, keys, gate = (self.weights[i].shape[0] for i in (1, 2, 6))
        return queries, keys, gate

    @property
    def ends_in_norm(self) -> bool:
        """Whether a norm follows the last block."""
        return len(self.epsilons) > 2 * len(self.layers)


def stack_runs_on(x_TE: Tensor, stack: Stack) -> bool:
    """Whether `transformer_stack` takes these: fp32 on a CPU that has the kernels, widths of whole vector registers."""
    width, weights, head_dim = vector_width(), stack.weights, stack.head_dim
    # In loops of C alone: a model has hundreds of weights, and this is asked in every step.
    return (
        width is not None
        and not torch.is_grad_enabled()
        and x_TE.shape[0] > 0
        and x_TE.is_contiguous()
        and multiplies_natively(x_TE)
        and head_dim % width == 0
        and head_dim >= 2 * width
        and x_TE.shape[1] % width == 0
        and KINDS.issuperset(map(type, weights))
        and set(map(attrgetter("dtype"), weights)) == {torch.float32}
        and all(map(attrgetter("is_cpu"), weights))
        and all(map(Tensor.is_contiguous, weights))
        and stack.widths[2] % width == 0
        and all(map(eq, map(attrgetter("shape"), weights), _shapes(x_TE.shape[1], stack)))
    )


def _shapes(hidden: int, stack: Stack) -> list[tuple[int, ...]]:
    queries, keys, width = stack.widths
    attention = [(hidden,), (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    feed_forward = [(hidden,), (width, hidden), (width, hidden), (hidden, width)]
    last_norm = [(hidden,)] if stack.ends_in_norm else []
    return [*(attention + feed_forward) * len(stack.layers), *last_norm]


def transformer_stack(
    x_TE: Tensor,
    stack: Stack,
    cos_T1D: Tensor,
    sin_T1D: Tensor,
    place: PagedPlace,
    *,
    instruction_set: str | None = None,
) -> Tensor:
    """Each block's h = x + attention(norm(x)); h + feed_forward(norm(h)): [T, E].

    With a last norm, the result is of the wanted tokens alone, [W, E], and only keys and values of the others are
    computed in the last block.

    Args:
        x_TE: for which `stack_runs_on` holds.
        stack: likewise.
        cos_T1D: fp32, contiguous, as `camelid.kernels.elementwise.rotate` takes them.
        sin_T1D: likewise.
        place: of the tokens in the cache, which is written.
        instruction_set: one of `camelid.kernels.instruction_sets()` instead of the chosen one.
    """
    keys, values = ([tensors[layer] for layer in stack.layers] for tensors in (place.keys, place.values))
    (tokens, hidden), (num_key_heads, head_dim) = x_TE.shape, keys[0].shape[1:]
    q_width, k_width, width = stack.widths
    assert head_dim == stack.head_dim
    assert k_width == num_key_heads * head_dim
    assert q_width % k_width == 0
    assert cos_T1D.shape == sin_T1D.shape == (tokens, 1, head_dim)
    floats = (cos_T1D, sin_T1D, *keys, *values)
    assert set(map(attrgetter("dtype"), floats)) == {torch.float32}
    assert all(map(Tensor.is_contiguous, floats))
    assert all(map(eq, map(attrgetter("shape"), floats[2:]), repeat(keys[0].shape)))
    assert place.slots_T.shape[0] == tokens
    layout, wanted = place.layout, place.wanted if stack.ends_in_norm else None
    rows_W, sequences_N4 = (
        (place.slots_T, layout.sequences_N4) if wanted is None else (wanted.rows_W, wanted.sequences_N4)
    )
    num_wanted, num_sequences = rows_W.shape[0], sequences_N4.shape[0]
    workspace = place.workspace.of(tokens * (3 * (hidden + q_width + k_width + width) + 2 * head_dim))
    out_WE = torch.empty(num_wanted, hidden, dtype=torch.float32, device=x_TE.device)
    kernels.native().transformer_stack(
        instruction_set or kernels.instruction_set(),
        (tokens, hidden, q_width // head_dim, num_key_heads, head_dim, width),
        (
            list(map(Tensor.data_ptr, stack.weights)),
            stack.epsilons,
            stack.scales,
            list(map(Tensor.data_ptr, keys)),
            list(map(Tensor.data_ptr, values)),
        ),
        (
            layout.sequences_N4.data_ptr(),
            layout.sequences_N4.shape[0],
            layout.tables.data_ptr(),
            layout.block_size,
            place.slots_T.data_ptr(),
        ),
        (rows_W.data_ptr(), num_wanted, sequences_N4.data_ptr(), num_sequences),
        x_TE.data_ptr(),
        cos_T1D.data_ptr(),
        sin_T1D.data_ptr(),
        workspace.data_ptr(),
        out_WE.data_ptr(),
        torch.get_num_threads(),
    )
    return out_WE
