"""A weight matrix whose format is its own affair: dense, or packed in one of the formats of `camelid.codecs`.

Shape suffixes: T tokens, I inputs (columns of the weight), O outputs (rows).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as all_modules

from camelid.base.errors import FormatError
from camelid.codecs import codec_of
from camelid.kernels.attention import vector_width
from camelid.kernels.elementwise import runs_natively, swiglu
from camelid.kernels.product import gated_linear, linear, linears, multiplies_natively

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from camelid.codecs.base import BlockCodec
    from camelid.codecs.packed import PackedTensor
    from camelid.codecs.torchao import DeviceFormat


class Matrix(nn.Module):
    """A weight [rows, columns], dense until `load_packed` replaces it.

    Args:
        rows: outputs of a projection, or entries of a vocabulary.
        columns: inputs of a projection, or the size of an embedding.
    """

    stays_exact: ClassVar[bool] = False
    """Whether the weight stays as it is where others are packed for a device."""
    weight: nn.Parameter | None
    """The dense parameter; None once packed."""
    packed: PackedTensor | None
    """The packed blocks; None while dense."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.shape = (rows, columns)
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.packed = None
        self._codec: BlockCodec | DeviceFormat | None = None

    def load_packed(self, packed: PackedTensor) -> None:
        """Replace the weight by packed blocks; nothing is unpacked.

        A packed weight is no parameter: `state_dict` leaves it out and no optimizer sees it; `save_huggingface` writes
        it.

        Raises:
            FormatError: the blocks stand for a matrix of another shape.
            NotFoundError: there is no such weight format.
        """
        if tuple(packed.shape) != self.shape:
            raise FormatError(f"a packed weight has the shape {tuple(packed.shape)} where {self.shape} belongs")
        self._codec = codec_of(packed.format)
        self.packed = packed
        self.weight = None

    def dense(self) -> Tensor:
        """The weight [rows, columns]; unpacked to fp32 if packed."""
        if self.packed is None:
            assert self.weight is not None
            return self.weight.detach()
        assert self._codec is not None
        return self._codec.unpack(self.packed)

    def load_dense(self, weight: Tensor) -> None:
        """Replace the weight, packed or not, by a dense one of the same shape."""
        assert tuple(weight.shape) == self.shape
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
        self.packed = None
        self._codec = None

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x · weightᵀ + bias: [T, O], typed like x."""
        if self.packed is None:
            assert self.weight is not None
            return linear(x_TI, self.weight, bias_O)
        assert self._codec is not None
        out_TO = self._codec.matmul(x_TI, self.packed)
        return out_TO if bias_O is None else out_TO + bias_O

    def rows(self, ids_T: Tensor) -> Tensor:
        """The rows with these numbers: [T, columns], fp32 if packed."""
        if self.packed is None:
            assert self.weight is not None
            return F.embedding(ids_T, self.weight)
        assert self._codec is not None
        return self._codec.unpack_rows(self.packed, ids_T)

    def extra_repr(self) -> str:
        """Shape and block format, for printing."""
        return f"{self.shape[0]}, {self.shape[1]}" + (f", {self.packed.format}" if self.packed else "")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the packed bytes along with the module; they are integers, so a change of dtype leaves them alone."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.packed is not None:
            self.packed = replace(self.packed, data=fn(self.packed.data))
        return self


class Linear(Matrix):
    """A projection: y = x · weightᵀ (+ bias).

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether a bias is added.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(out_features, in_features)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] → [T, O]."""
        return self.multiply(x_TI, self.bias)


def project(x_TI: Tensor, *projections: Linear) -> tuple[Tensor, ...]:
    """What each of several projections makes of the same input: [T, O] each, in one pass over the weights where that
    can be."""
    if not _in_one_pass(x_TI, projections):
        return tuple(projection(x_TI) for projection in projections)
    side_by_side = linears(x_TI, [p.weight for p in projections if p.weight is not None])
    outs = torch.split(side_by_side, [p.shape[0] for p in projections], 1)
    return tuple(out if p.bias is None else out + p.bias for p, out in zip(projections, outs, strict=True))


def project_gated(x_TI: Tensor, gate: Linear, up: Linear) -> Tensor:
    """silu(gate(x)) ⊙ up(x): [T, F]."""
    if (
        gate.weight is None
        or up.weight is None
        or gate.bias is not None
        or not _in_one_pass(x_TI, (gate, up))
        or gate.shape[0] % (vector_width() or 1) != 0
    ):
        return gated(gate(x_TI), up(x_TI))
    return gated_linear(x_TI, gate.weight, up.weight)


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) ⊙ up: [T, F]."""
    if runs_natively(gate_TF, up_TF):
        return swiglu(gate_TF, up_TF)
    if multiplies_natively(gate_TF, up_TF):
        # torch's SiLU rounds otherwise behind the last whole vector: a token's bits would hang on the number of tokens.
        missing = -gate_TF.shape[-1] % (vector_width() or 1)
        padded = (F.pad(x_TF, (0, missing)) for x_TF in (gate_TF, up_TF))
        return swiglu(*padded)[:, : gate_TF.shape[-1]]
    return F.silu(gate_TF) * up_TF


def _in_one_pass(x_TI: Tensor, projections: Sequence[Linear]) -> bool:
    """Whether nothing but native products happens in these: dense weights, no gradients and no adapters' hooks."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not x_TI.numel():
        return False
    if has_hooks_for_all() or not all(_is_plain(p) for p in projections):
        return False
    weights = [p.weight for p in projections if p.weight is not None and p.weight.numel()]
    return len(weights) == len(projections) and multiplies_natively(x_TI, *weights)


def has_hooks_for_all() -> bool:
    """Whether somebody watches or changes what any module at all computes, as profilers do."""
    return bool(all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks)


def _is_plain(projection: Linear) -> bool:
    """Whether it does what its class says, and nothing else: no subclass, no hooks, no `forward` of its own."""
    hooked = projection._forward_hooks or projection._forward_pre_hooks
    return type(projection) is Linear and not hooked and "forward" not in projection.__dict__
