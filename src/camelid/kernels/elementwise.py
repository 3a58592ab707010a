"""RMSNorm, SwiGLU, rotary embedding and the loss's softmax in one pass each way, and the best scores, on a CPU.

The plain twins are the layers of `camelid.model.layers` and `camelid.model.rotary`, and `best_tokens` of
`camelid.engine.sampling.draw`, with `CAMELID_KERNELS=torch`. torch takes about ten passes over memory for a norm or a
SwiGLU, and keeps twice as much for the backward pass.

Shape suffixes: T tokens, E hidden size, F width of the feed-forward layer, N heads, D head dimension, C tokens of one
chunk, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from camelid import kernels
from camelid.kernels.attention import vector_width
from camelid.kernels.product import multiplies_natively

if TYPE_CHECKING:
    from torch import Tensor


def runs_natively(*tensors: Tensor) -> bool:
    """Whether these go through the kernels: fp32 on a CPU that has them, rows of whole vectors.

    Fake tensors, with which a run is planned, take the same way and as much memory, but there is nothing to compute.
    Other kinds of tensors, distributed ones say, may have no address.
    """
    if torch.compiler.is_compiling():
        return False
    width = vector_width()
    if width is None:
        return False
    for x in tensors:
        if type(x) not in (torch.Tensor, torch.nn.Parameter, FakeTensor) or x.dtype != torch.float32:
            return False
        if x.device.type != "cpu" or x.shape[-1] % width != 0:
            return False
    return True


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float, *, instruction_set: str | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight, for tensors for which `runs_natively` holds; differentiable once."""
    chosen = instruction_set or kernels.instruction_set() or ""
    if not torch.is_grad_enabled():
        return _normed(x_TE, weight_E, eps, chosen)
    return cast("Tensor", cast("Any", _RMSNorm.apply)(x_TE, weight_E, eps, chosen))


def swiglu(gate_TF: Tensor, up_TF: Tensor, *, instruction_set: str | None = None) -> Tensor:
    """silu(gate) ⊙ up, for tensors for which `runs_natively` holds; differentiable once."""
    chosen = instruction_set or kernels.instruction_set() or ""
    if not torch.is_grad_enabled():
        return _gated(gate_TF, up_TF, chosen)
    return cast("Tensor", cast("Any", _SwiGLU.apply)(gate_TF, up_TF, chosen))


def rotate(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, *, instruction_set: str | None = None) -> Tensor:
    """x · cos + (x, its halves exchanged) · sin, with sines that differ between the halves in their sign alone.

    For tensors for which `rotates_natively` holds; differentiable once, in x.
    """
    chosen = instruction_set or kernels.instruction_set() or ""
    if not torch.is_grad_enabled():
        return _rotated(x_TND, cos_T1D, sin_T1D, chosen)
    return cast("Tensor", cast("Any", _Rotate.apply)(x_TND, cos_T1D, sin_T1D, chosen))


def rotates_natively(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> bool:
    """Whether `rotate` takes these: half a head is a whole vector or more."""
    return runs_natively(x_TND, cos_T1D, sin_T1D) and x_TND.shape[-1] >= 2 * (vector_width() or 0)


def softmax_shares(logits_CV: Tensor, *, instruction_set: str | None = None) -> tuple[Tensor, Tensor]:
    """Replace contiguous fp32 logits by their shares in the softmax, natively if `multiplies_natively`.

    Natively a row's shares are not brought to a sum of 1, which would be another pass: its reader scales them anyway.

    Returns:
        [C] what a row's shares sum to, and [C] the logits' logsumexp.
    """
    assert logits_CV.is_contiguous()
    if not multiplies_natively(logits_CV):
        largest_C = logits_CV.amax(1)
        torch.softmax(logits_CV, 1, out=logits_CV)
        # The largest share is exp(0) / Σ exp(logit − largest) and at least 1/V: its logarithm is safe.
        return torch.ones_like(largest_C), largest_C - logits_CV.amax(1).log()
    largest_C, totals_C = logits_CV.new_empty(len(logits_CV)), logits_CV.new_empty(len(logits_CV))
    addresses = [x.data_ptr() for x in (logits_CV, largest_C, totals_C)]
    chosen = instruction_set or kernels.instruction_set()
    kernels.native().softmax_shares(chosen, *addresses, *logits_CV.shape, torch.get_num_threads())
    return totals_C, largest_C + totals_C.log()


def greatest(x_TV: Tensor, *, instruction_set: str | None = None) -> tuple[list[float], list[int]]:
    """The greatest of each row and the first column that has it; of a row with NaN, NaN and the first such column.

    For one or more columns for which `finds_natively` holds.
    """
    assert x_TV.shape[1] > 0
    chosen, address = instruction_set or kernels.instruction_set(), (x_TV.data_ptr(), x_TV.stride(0))
    found: tuple[list[float], list[int]] = kernels.native().greatest(
        chosen, address, *x_TV.shape, torch.get_num_threads()
    )
    return found


def finds_natively(x_TV: Tensor) -> bool:
    """Whether `greatest` takes these: what `multiplies_natively`, rows whose numbers lie end to end."""
    return multiplies_natively(x_TV) and x_TV.stride(1) == 1


def _normed(x_TE: Tensor, weight_E: Tensor, eps: float, chosen: str) -> Tensor:
    assert weight_E.shape == x_TE.shape[-1:]
    x_TE, weight_E = x_TE.contiguous(), weight_E.contiguous()
    out_TE = torch.empty_like(x_TE)
    if not isinstance(x_TE, FakeTensor):
        num_rows, width = x_TE.numel() // x_TE.shape[-1], x_TE.shape[-1]
        addresses = x_TE.data_ptr(), weight_E.data_ptr(), eps, out_TE.data_ptr()
        kernels.native().rms_norm(chosen, *addresses, num_rows, width, torch.get_num_threads())
    return out_TE


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, weight_E: Tensor, eps: float, chosen: str) -> Tensor:
        x_TE, weight_E = x_TE.contiguous(), weight_E.contiguous()
        ctx.save_for_backward(x_TE, weight_E)
        ctx.eps, ctx.chosen = eps, chosen
        return _normed(x_TE, weight_E, eps, chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_TE: Tensor) -> tuple[Tensor | None, ...]:
        x_TE, weight_E = ctx.saved_tensors
        out_grad_TE = out_grad_TE.contiguous()
        num_rows, width = x_TE.numel() // x_TE.shape[-1], x_TE.shape[-1]
        x_grad_TE = torch.empty_like(x_TE)
        weight_grads = x_TE.new_empty((-(-num_rows // kernels.native().norm_rows), width))
        if isinstance(x_TE, FakeTensor):
            return x_grad_TE, weight_grads.sum(0), None, None
        inputs = x_TE.data_ptr(), weight_E.data_ptr(), ctx.eps
        grads = out_grad_TE.data_ptr(), x_grad_TE.data_ptr(), weight_grads.data_ptr()
        kernels.native().rms_norm_gradients(ctx.chosen, *inputs, *grads, num_rows, width, torch.get_num_threads())
        return x_grad_TE, weight_grads.sum(0), None, None


def _gated(gate_TF: Tensor, up_TF: Tensor, chosen: str) -> Tensor:
    assert gate_TF.shape == up_TF.shape
    gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
    out_TF = torch.empty_like(gate_TF)
    if not isinstance(gate_TF, FakeTensor):
        addresses = [x.data_ptr() for x in (gate_TF, up_TF, out_TF)]
        kernels.native().swiglu(chosen, *addresses, out_TF.numel(), torch.get_num_threads())
    return out_TF


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, chosen: str) -> Tensor:
        gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.chosen = chosen
        return _gated(gate_TF, up_TF, chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_TF: Tensor) -> tuple[Tensor | None, ...]:
        gate_TF, up_TF = ctx.saved_tensors
        out_grad_TF = out_grad_TF.contiguous()
        grads = torch.empty_like(gate_TF), torch.empty_like(up_TF)
        if isinstance(gate_TF, FakeTensor):
            return *grads, None
        addresses = [x.data_ptr() for x in (gate_TF, up_TF, out_grad_TF, *grads)]
        kernels.native().swiglu_gradients(ctx.chosen, *addresses, gate_TF.numel(), torch.get_num_threads())
        return *grads, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, chosen: str) -> Tensor:
        ctx.save_for_backward(cos_T1D, sin_T1D)
        ctx.chosen = chosen
        return _rotated(x_TND, cos_T1D, sin_T1D, chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad_TND: Tensor) -> tuple[Tensor | None, ...]:
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _rotated(out_grad_TND, cos_T1D, sin_T1D, ctx.chosen, back=True), None, None, None


def _rotated(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, chosen: str, *, back: bool = False) -> Tensor:
    assert cos_T1D.shape == sin_T1D.shape == (len(x_TND), 1, x_TND.shape[-1])
    if x_TND.stride()[1:] != (x_TND.shape[2], 1):
        x_TND = x_TND.contiguous()
    cos_T1D, sin_T1D = cos_T1D.contiguous(), sin_T1D.contiguous()
    out_TND = torch.empty(x_TND.shape, dtype=torch.float32, device=x_TND.device)
    if not isinstance(x_TND, FakeTensor):
        x, angles = (x_TND.data_ptr(), x_TND.stride(0)), (cos_T1D.data_ptr(), sin_T1D.data_ptr())
        kernels.native().rotate(chosen, x, *angles, back, out_TND.data_ptr(), *x_TND.shape, torch.get_num_threads())
    return out_TND
