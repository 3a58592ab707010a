"""Matrix products in fp32 on a CPU, with their gradients: native where that is faster than torch's.

On the AMD processor that it was measured on, torch's product, which is Intel's library, was slower. It is the plain
twin, which does all the work elsewhere or with `CAMELID_KERNELS=torch`.

Shape suffixes: M rows and N columns of a product, K depth that is summed over; T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from camelid import kernels
from camelid.kernels.attention import vector_width

if TYPE_CHECKING:
    from torch import Tensor


def multiplies_natively(*matrices: Tensor) -> bool:
    """Whether products of these go through the kernel: fp32 matrices on a CPU that has it, and no autocast."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or vector_width() is None:
        return False
    for x in matrices:
        if type(x) not in (torch.Tensor, torch.nn.Parameter):  # others may have no address
            return False
        if x.dtype != torch.float32 or x.ndim != 2 or not x.is_cpu:
            return False
    return True


def product(
    a_MK: Tensor,
    b_KN: Tensor,
    *,
    out_MN: Tensor | None = None,
    add: bool = False,
    instruction_set: str | None = None,
) -> Tensor:
    """a · b: [M, N], natively if `multiplies_natively`; not differentiable.

    A row of the native result has the same bits whatever rows are with it, and whatever the number of threads.

    Args:
        a_MK: left factor; a transposed view is read as it lies.
        b_KN: right factor, likewise.
        out_MN: where the product goes, its rows contiguous; None: a new tensor.
        add: to what `out_MN` holds.
        instruction_set: one of `camelid.kernels.instruction_sets()` instead of the chosen one.
    """
    assert a_MK.shape[1] == b_KN.shape[0]
    assert out_MN is not None or not add
    if not multiplies_natively(a_MK, b_KN) or not a_MK.numel() or not b_KN.numel():
        if out_MN is None:
            return a_MK @ b_KN
        return out_MN.addmm_(a_MK, b_KN) if add else torch.mm(a_MK, b_KN, out=out_MN)
    if out_MN is None:
        return _product(a_MK, b_KN, instruction_set or kernels.instruction_set())
    assert out_MN.shape == (a_MK.shape[0], b_KN.shape[1])
    assert out_MN.dtype == torch.float32
    assert out_MN.stride(1) == 1
    _multiply(a_MK, b_KN, out_MN, add, instruction_set or kernels.instruction_set())
    return out_MN


def linear(
    x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, instruction_set: str | None = None
) -> Tensor:
    """x · weightᵀ + bias: [T, O], natively if `multiplies_natively`; differentiable once there.

    Natively a row of the result has the same bits whatever rows are with it.
    """
    if not multiplies_natively(x_TI, weight_OI) or not x_TI.numel():
        return F.linear(x_TI, weight_OI, bias_O)
    chosen = instruction_set or kernels.instruction_set()
    if torch.is_grad_enabled():
        out_TO = cast("Tensor", cast("Any", _Linear.apply)(x_TI, weight_OI, chosen))
        return out_TO if bias_O is None else out_TO + bias_O
    out_TO = _product(x_TI, weight_OI.t(), chosen)
    return out_TO if bias_O is None else out_TO.add_(bias_O)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, chosen: str) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        ctx.chosen = chosen
        return product(x_TI, weight_OI.T, instruction_set=chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        x_grad_TI = product(out_grad_TO, weight_OI, instruction_set=ctx.chosen) if wants_x else None
        weight_grad_OI = product(out_grad_TO.T, x_TI, instruction_set=ctx.chosen) if wants_weight else None
        return x_grad_TI, weight_grad_OI, None


def _product(a_MK: Tensor, b_KN: Tensor, chosen: str | None) -> Tensor:
    out_MN = torch.empty(a_MK.shape[0], b_KN.shape[1], dtype=torch.float32, device=a_MK.device)
    _multiply(a_MK, b_KN, out_MN, False, chosen)
    return out_MN


def _multiply(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, add: bool, chosen: str | None) -> None:
    a_strides, b_strides = a_MK.stride(), b_KN.stride()
    if 1 not in a_strides:
        a_MK = a_MK.contiguous()
        a_strides = a_MK.stride()
    if 1 not in b_strides:
        b_KN = b_KN.contiguous()
        b_strides = b_KN.stride()
    (rows, depth), columns = a_MK.shape, b_KN.shape[1]
    a, b, out = (a_MK.data_ptr(), *a_strides), (b_KN.data_ptr(), *b_strides), (out_MN.data_ptr(), out_MN.stride(0))
    kernels.native().product(chosen, (rows, columns, depth), a, b, out, add, torch.get_num_threads())
