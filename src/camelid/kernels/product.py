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
    from collections.abc import Sequence

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
        out_MN = torch.empty(a_MK.shape[0], b_KN.shape[1], dtype=torch.float32, device=a_MK.device)
    assert out_MN.shape == (a_MK.shape[0], b_KN.shape[1])
    assert out_MN.dtype == torch.float32
    assert out_MN.stride(1) == 1
    a_MK, b_KN = _in_lines(a_MK), _in_lines(b_KN)
    factor = (_address(b_KN), b_KN.shape[1], out_MN.data_ptr())
    native, chosen = kernels.native(), instruction_set or kernels.instruction_set()
    shape, out_row = (a_MK.shape[0], a_MK.shape[1]), out_MN.stride(0)
    native.product(chosen, shape, _address(a_MK), [factor], out_row, add, torch.get_num_threads())
    return out_MN


def linear(
    x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, instruction_set: str | None = None
) -> Tensor:
    """x · weightᵀ + bias: [T, O], natively if `multiplies_natively`; differentiable once there.

    Natively a row of the result has the same bits whatever rows are with it.
    """
    if not multiplies_natively(x_TI, weight_OI) or not x_TI.numel() or not weight_OI.numel():
        return F.linear(x_TI, weight_OI, bias_O)
    chosen = instruction_set or kernels.instruction_set()
    if torch.is_grad_enabled():
        out_TO = cast("Tensor", cast("Any", _Linear.apply)(x_TI, weight_OI, chosen))
        return out_TO if bias_O is None else out_TO + bias_O
    out_TO = _side_by_side(x_TI, (weight_OI,), chosen)
    return out_TO if bias_O is None else out_TO.add_(bias_O)


def linears(x_TI: Tensor, weights_OI: Sequence[Tensor], *, instruction_set: str | None = None) -> Tensor:
    """x · weightᵀ for several weights, side by side: [T, sum of O], in one pass over them; without gradients.

    For tensors for which `multiplies_natively` holds, none of them empty. The bits are those of `linear`.
    """
    return _side_by_side(x_TI, weights_OI, instruction_set or kernels.instruction_set())


def gated_linear(x_TI: Tensor, gate_FI: Tensor, up_FI: Tensor, *, instruction_set: str | None = None) -> Tensor:
    """silu(x · gateᵀ) ⊙ (x · upᵀ): [T, F], in one pass over both; without gradients.

    For tensors for which `multiplies_natively` holds, none of them empty, F a multiple of the vector width. The bits
    are those of `linear` and `camelid.kernels.elementwise.swiglu`.
    """
    (rows, depth), width = x_TI.shape, gate_FI.shape[0]
    assert gate_FI.shape == up_FI.shape == (width, depth)
    assert 0 not in (rows, depth, width)
    x_TI, gate_FI, up_FI = (_in_lines(x) for x in (x_TI, gate_FI, up_FI))
    both_T2F, out_TF = x_TI.new_empty(rows, 2 * width), x_TI.new_empty(rows, width)
    kernels.native().gated_product(
        instruction_set or kernels.instruction_set(),
        (rows, depth),
        _address(x_TI),
        _address_transposed(gate_FI),
        _address_transposed(up_FI),
        width,
        both_T2F.data_ptr(),
        out_TF.data_ptr(),
        torch.get_num_threads(),
    )
    return out_TF


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


def _side_by_side(x_TI: Tensor, weights_OI: Sequence[Tensor], chosen: str | None) -> Tensor:
    x_TI, weights_OI = _in_lines(x_TI), [_in_lines(weight_OI) for weight_OI in weights_OI]
    rows, depth = x_TI.shape
    widths = [len(weight_OI) for weight_OI in weights_OI]
    assert 0 not in (rows, depth, *widths)
    out_TO = x_TI.new_empty(rows, sum(widths))
    place, factors = out_TO.data_ptr(), []
    for weight_OI, width in zip(weights_OI, widths, strict=True):
        assert weight_OI.shape[1] == depth
        factors.append((_address_transposed(weight_OI), width, place))
        place += width * 4
    x_address, out_row = _address(x_TI), out_TO.stride(0)
    kernels.native().product(chosen, (rows, depth), x_address, factors, out_row, False, torch.get_num_threads())
    return out_TO


def _in_lines(x_MN: Tensor) -> Tensor:
    """With rows or columns whose numbers lie end to end."""
    return x_MN if 1 in x_MN.stride() else x_MN.contiguous()


def _address(x_MN: Tensor) -> tuple[int, int, int]:
    row, column = x_MN.stride()
    assert 1 in (row, column)
    return x_MN.data_ptr(), row, column


def _address_transposed(x_MN: Tensor) -> tuple[int, int, int]:
    address, row, column = _address(x_MN)
    return address, column, row
