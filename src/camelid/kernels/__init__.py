"""Native CPU kernels, and the one place that decides whether they run.

The kernels are C++ (csrc/), compiled for several instruction sets and chosen by what the processor has. Each has a
plain twin in torch that gives the same result and runs everywhere: for weights in blocks, the codec of the same name in
`camelid.codecs`. The twins do all the work on other devices, where no compiler was at hand at install time, and on
request:

    CAMELID_KERNELS=torch        only the twins
    CAMELID_KERNELS=portable     plain C++; likewise "avx2", "avx512"
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from camelid.base.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import Tensor

_BLOCK_SIZE = 32


def native_available() -> bool:
    """Whether native kernels run in this process."""
    return instruction_set() is not None


@cache
def instruction_set() -> str | None:
    """The instruction set whose kernels run: "avx512", "avx2" or "portable"; None if only the torch twins do.

    Raises:
        ConfigError: $CAMELID_KERNELS names something that this installation or processor doesn't have.
    """
    known = instruction_sets()
    wanted = os.environ.get("CAMELID_KERNELS", "")
    if wanted == "torch":
        return None
    if not wanted:
        return known[0] if known else None
    if wanted not in known:
        raise ConfigError(
            f"CAMELID_KERNELS is '{wanted}', which is not available here", hint=did_you_mean(wanted, [*known, "torch"])
        )
    return wanted


def instruction_sets() -> list[str]:
    """Every instruction set that could run here, best first; empty if the extension was not built."""
    native = _extension()
    return list(native.instruction_sets()) if native else []


def runs_on(format: str, device: torch.device) -> bool:
    """Whether native kernels for blocks of this format run on this device."""
    return device.type == "cpu" and format in _formats() and native_available()


def unpack(format: str, data_RB: Tensor, out_RN: Tensor, *, instruction_set: str | None = None) -> None:
    """Decode rows of blocks, bit for bit as the codec does.

    Args:
        format: a weight format for which `runs_on` holds.
        data_RB: uint8, the blocks of R rows.
        out_RN: float32, filled with R rows of N weights.
        instruction_set: one of `instruction_sets()` instead of the chosen one.
    """
    import torch

    rows, columns = out_RN.shape
    _check_blocks(format, data_RB, rows, columns)
    assert out_RN.dtype == torch.float32
    assert out_RN.is_contiguous()
    native, chosen = _chosen(instruction_set)
    native.unpack(format, chosen, data_RB.data_ptr(), out_RN.data_ptr(), rows, columns, torch.get_num_threads())


def matmul(format: str, x_TN: Tensor, data_RB: Tensor, *, instruction_set: str | None = None) -> Tensor:
    """x @ W.T for few rows of activations and a matrix in blocks, decoded on the fly; sums are float32.

    The result of a row of activations is the same bit for bit whatever other rows are with it, and whatever the number
    of threads.

    Args:
        format: a weight format for which `runs_on` holds.
        x_TN: float32 activations, contiguous.
        data_RB: uint8, the blocks of R rows of N weights.
        instruction_set: one of `instruction_sets()` instead of the chosen one.

    Returns:
        float32 [T, R].
    """
    import torch

    batch, columns = x_TN.shape
    rows = data_RB.shape[0]
    _check_blocks(format, data_RB, rows, columns)
    assert x_TN.dtype == torch.float32
    assert x_TN.device.type == "cpu"
    assert x_TN.is_contiguous()
    # Stated in full: the kernel writes float32 here whatever the process's default dtype and device are.
    out_TR = torch.empty(batch, rows, dtype=torch.float32, device=x_TN.device)
    native, chosen = _chosen(instruction_set)
    native.matmul(
        format,
        chosen,
        x_TN.data_ptr(),
        data_RB.data_ptr(),
        out_TR.data_ptr(),
        batch,
        rows,
        columns,
        torch.get_num_threads(),
    )
    return out_TR


@cache
def native() -> Any:
    """The compiled module, for the modules of this package, which ask first whether its kernels run."""
    from camelid.kernels import _native

    return _native


def _check_blocks(format: str, data_RB: Tensor, rows: int, columns: int) -> None:
    assert data_RB.element_size() == 1
    assert data_RB.is_contiguous()
    assert columns % _BLOCK_SIZE == 0
    assert data_RB.shape == (rows, columns // _BLOCK_SIZE * _formats()[format])


def _chosen(name: str | None) -> tuple[ModuleType, str]:
    native, chosen = _extension(), name or instruction_set()
    assert native is not None
    assert chosen is not None
    return native, chosen


@cache
def _formats() -> dict[str, int]:
    native = _extension()
    return dict(native.formats()) if native else {}


@cache
def _extension() -> ModuleType | None:
    """The compiled module, or None where it was not built (`pip install` without a C++ compiler)."""
    try:
        from camelid.kernels import _native
    except ImportError:
        return None
    return _native
