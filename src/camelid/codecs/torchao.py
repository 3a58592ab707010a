"""Weights in 8 and 4 bits as torchao keeps them, for the device that they run on and not for files.

A weight is a tensor of torchao's own kind, which `F.linear` multiplies with. Version 0.18 was read and tried.

Shape suffixes: T tokens, O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from camelid.base.errors import ConfigError, ResourceError
from camelid.codecs.packed import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch import Tensor

LEAST_ROWS = 32
"""Activations in 8 bits are padded to as many rows: cuBLAS multiplies integers from 17 rows on."""


@dataclass(frozen=True)
class DeviceFormat:
    """One of torchao's ways to keep a weight and to multiply with it."""

    name: str
    """The key in `camelid.codecs.DEVICE_FORMATS`."""
    config: Callable[[ModuleType], Any]
    """torchao's description, from its module `torchao.quantization`."""
    steps_are_fixed: bool = True
    """Whether the operations of a product follow from shapes alone where nothing is compiled."""
    group_size: int = 1
    """Weights with one scale; rows are whole groups."""
    only_cuda: bool = False
    """Whether it runs in bfloat16 on CUDA devices of compute capability 8 alone."""

    def pack(self, weight_OI: Tensor) -> PackedTensor:
        """The matrix in this format, on the device where it is.

        Raises:
            ResourceError: torchao is not installed.
            ConfigError: the format does not take this matrix, or not on this device.
        """
        if self.only_cuda and (weight_OI.device.type != "cuda" or weight_OI.dtype != torch.bfloat16):
            raise ConfigError(
                f"weights in {self.name} run in bfloat16 on a CUDA device, not in {weight_OI.dtype} on "
                f"{weight_OI.device.type}",
                hint="take int8, or device='cuda' and dtype='bfloat16'",
            )
        if weight_OI.shape[1] % self.group_size:
            raise ConfigError(
                f"a matrix {list(weight_OI.shape)} cannot be packed as {self.name}",
                hint=f"its rows must be multiples of {self.group_size}: take int8",
            )
        quantization = _torchao()
        holder = nn.Linear(1, 1, bias=False, device="meta")
        holder.weight = nn.Parameter(weight_OI.detach(), requires_grad=False)
        quantization.quantize_(holder, self.config(quantization))
        return PackedTensor(holder.weight.detach(), self.name, tuple(weight_OI.shape))

    def unpack(self, packed: PackedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense matrix."""
        if hasattr(packed.data, "dequantize") and not self.only_cuda:
            return packed.data.dequantize().to(dtype)
        identity_II = torch.eye(packed.shape[1], dtype=torch.bfloat16, device=packed.data.device)
        return F.linear(identity_II, packed.data).T.to(dtype).contiguous()

    def unpack_rows(self, packed: PackedTensor, rows_T: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The given rows of a matrix: [T, I]."""
        return self.unpack(packed, dtype)[rows_T]

    def matmul(self, x_TI: Tensor, packed: PackedTensor) -> Tensor:
        """x @ W.T: [T, O], typed like x."""
        num_padding = 0 if self.steps_are_fixed or x_TI.device.type == "cpu" else max(LEAST_ROWS - len(x_TI), 0)
        if num_padding:
            return F.linear(F.pad(x_TI, (0, 0, 0, num_padding)), packed.data)[: len(x_TI)]
        return F.linear(x_TI, packed.data)


def _torchao() -> ModuleType:
    try:
        return import_module("torchao.quantization")
    except ImportError as error:
        raise ResourceError(
            "weights in int8 and int4 for a device need torchao", hint="pip install 'camelid[torchao]'"
        ) from error


# `set_inductor_config` would change settings of torch's compiler for the whole process.
INT8 = DeviceFormat("int8", lambda torchao: torchao.Int8WeightOnlyConfig(set_inductor_config=False))
INT8_DYNAMIC = DeviceFormat(
    "int8_dynamic",
    lambda torchao: torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
    steps_are_fixed=False,  # torchao looks at the values unless it is being compiled
)
INT4 = DeviceFormat(
    "int4",
    lambda torchao: torchao.Int4WeightOnlyConfig(
        group_size=128, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    ),
    group_size=128,
    only_cuda=True,
)
