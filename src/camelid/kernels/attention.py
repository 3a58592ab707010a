"""Causal attention over sequences that lie end to end, with its gradient: native where that is faster than torch.

The plain twin is `camelid.model.attention.PackedContext` with `CAMELID_KERNELS=torch`: one call of torch's attention
per sequence.

Shape suffixes: T tokens of all sequences end to end, H query heads, K key/value heads, D head dimension, N sequences.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from camelid import kernels

if TYPE_CHECKING:
    from torch import Tensor


def vector_width() -> int | None:
    """Floats of a vector register of the chosen instruction set; None where it has no kernels for training."""
    return vector_widths().get(kernels.instruction_set() or "")


@cache
def vector_widths() -> dict[str, int]:
    """The same of every instruction set that could run here and has such kernels."""
    return kernels.native().attention_dim_factors() if kernels.native_available() else {}


def attention_runs_on(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> bool:
    """Whether `packed_attention` takes these: fp32 on a CPU that has the kernel, heads of whole vector registers."""
    if torch.compiler.is_compiling():  # a compiler sees no further than an address
        return False
    width = vector_width()
    return (
        width is not None
        and q_THD.shape[-1] % width == 0
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in (q_THD, k_TKD, v_TKD))
        and all(type(x) in (torch.Tensor, FakeTensor) for x in (q_THD, k_TKD, v_TKD))  # others may have no address
    )


def packed_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    starts_N1: Tensor,
    *,
    scale: float,
    instruction_set: str | None = None,
) -> Tensor:
    """Causal attention within each sequence: [T, H, D]; differentiable once.

    A sequence's result and gradients are the same bit for bit whatever lies beside it and whatever the number of
    threads.

    Args:
        q_THD: queries, for which `attention_runs_on` holds.
        k_TKD: keys; query head h reads key/value head h // (H // K).
        v_TKD: values.
        starts_N1: int64, contiguous; sequence n has the tokens starts[n] … starts[n + 1] − 1, and the last start is T.
        scale: factor of the scores before the softmax.
        instruction_set: one of `camelid.kernels.instruction_sets()` instead of the chosen one.
    """
    chosen = instruction_set or kernels.instruction_set()
    return cast("Tensor", cast("Any", _PackedAttention.apply)(q_THD, k_TKD, v_TKD, starts_N1, scale, chosen))


class _PackedAttention(torch.autograd.Function):
    """Keeps queries, keys and values for the backward pass, which makes the probabilities again, a block at a time.

    Fake tensors, with which a run is planned, take the same way and as much memory, but there is nothing to compute.
    """

    @staticmethod
    def forward(
        ctx: Any, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, starts_N1: Tensor, scale: float, chosen: str
    ) -> Tensor:
        q_THD, k_TKD, v_TKD = (_with_whole_rows(x) for x in (q_THD, k_TKD, v_TKD))
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, starts_N1)
        ctx.scale, ctx.chosen = scale, chosen
        out_THD = torch.empty(q_THD.shape, dtype=torch.float32, device=q_THD.device)
        if isinstance(q_THD, FakeTensor):
            return out_THD
        tensors = [_address(x) for x in (q_THD, k_TKD, v_TKD, out_THD)]
        sizes = _sizes(q_THD, k_TKD, starts_N1)
        kernels.native().attention(chosen, starts_N1.data_ptr(), sizes, scale, *tensors, torch.get_num_threads())
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, starts_N1 = ctx.saved_tensors
        out_grad_THD = _with_whole_rows(out_grad_THD)
        grads = [torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in (q_THD, k_TKD, v_TKD)]
        if isinstance(q_THD, FakeTensor):
            return *grads, None, None, None
        tensors = [_address(x) for x in (q_THD, k_TKD, v_TKD, out_grad_THD, *grads)]
        sizes = _sizes(q_THD, k_TKD, starts_N1)
        kernels.native().attention_gradients(
            ctx.chosen, starts_N1.data_ptr(), sizes, ctx.scale, *tensors, torch.get_num_threads()
        )
        return *grads, None, None, None


def _with_whole_rows(x_TND: Tensor) -> Tensor:
    """The heads of a token must lie end to end; the tokens may be any distance apart."""
    return x_TND if x_TND.stride()[1:] == (x_TND.shape[2], 1) else x_TND.contiguous()


def _address(x_TND: Tensor) -> tuple[int, int]:
    return x_TND.data_ptr(), x_TND.stride(0)


def _sizes(q_THD: Tensor, k_TKD: Tensor, starts_N1: Tensor) -> tuple[int, int, int, int]:
    assert starts_N1.dtype == torch.int64
    assert starts_N1.is_contiguous()
    assert q_THD.shape[1] % k_TKD.shape[1] == 0
    return len(starts_N1) - 1, q_THD.shape[1], k_TKD.shape[1], q_THD.shape[2]
