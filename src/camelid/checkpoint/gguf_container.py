"""Writing GGUF's container: the header, laid out before a single tensor is at hand (ggml docs/gguf.md, version 3).

`camelid.base.gguf_header` reads it back.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from camelid.base.errors import ConfigError
from camelid.base.gguf_header import GGML_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GGUFValue = str | bool | int | float | list[str] | np.int32 | np.ndarray[Any, Any]
"""What metadata can hold here: a whole number is written as u32, one with a point as f32, numpy's as they are."""

ALIGNMENT: Final = 32
"""GGUF's default; tensors start at multiples of it."""

_VERSION: Final = 3
_U32_TYPE, _F32_TYPE, _BOOL_TYPE, _STRING_TYPE, _ARRAY_TYPE = 4, 6, 7, 8, 9
_NUMPY_TYPES: Final = {"uint8": 0, "int8": 1, "int32": 5, "uint32": 4, "float32": 6}
_TYPE_IDS: Final = {kind.name: number for number, kind in GGML_TYPES.items()}
_BY_NAME: Final = {kind.name: kind for kind in GGML_TYPES.values()}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_I32: Final = struct.Struct("<i")
_F32: Final = struct.Struct("<f")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is going to be written."""

    name: str
    """GGUF's."""
    shape: tuple[int, ...]
    """Row-major, as torch has it."""
    type_name: str
    """A name in `GGML_TYPES`: "F32", "Q4_K"."""

    @property
    def num_bytes(self) -> int:
        """Of its data, without padding."""
        kind = _BY_NAME[self.type_name]
        assert self.shape[-1] % kind.block_size == 0, f"{self.name}: rows of {self.shape[-1]} in {self.type_name}"
        return math.prod(self.shape) // kind.block_size * kind.block_bytes


def padding(num_bytes: int) -> int:
    """Zero bytes that bring a length to a multiple of the alignment."""
    return -num_bytes % ALIGNMENT


def header_bytes(metadata: Mapping[str, GGUFValue], tensors: Sequence[PlannedTensor]) -> bytes:
    """Everything before the tensors' data, padded; the data follow in the order given, each padded too.

    Raises:
        ConfigError: a whole number or an id that does not fit into 32 bits.
    """
    content = bytearray(b"GGUF")
    content += _U32.pack(_VERSION) + _U64.pack(len(tensors)) + _U64.pack(len(metadata))
    for key, value in metadata.items():
        content += _string(key) + _value(key, value)
    offset = 0
    for tensor in tensors:
        content += _string(tensor.name) + _U32.pack(len(tensor.shape))
        content += b"".join(_U64.pack(size) for size in reversed(tensor.shape))
        content += _U32.pack(_TYPE_IDS[tensor.type_name]) + _U64.pack(offset)
        offset += tensor.num_bytes + padding(tensor.num_bytes)
    return bytes(content) + bytes(padding(len(content)))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _U64.pack(len(encoded)) + encoded


def _value(key: str, value: GGUFValue) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, str):
        return _U32.pack(_STRING_TYPE) + _string(value)
    if isinstance(value, bool):
        return _U32.pack(_BOOL_TYPE) + bytes([value])
    if isinstance(value, int):
        if not 0 <= value < 2**32:
            raise ConfigError(f"{value} does not fit into GGUF's 32 bits", where=key)
        return _U32.pack(_U32_TYPE) + _U32.pack(value)
    if isinstance(value, float):
        return _U32.pack(_F32_TYPE) + _F32.pack(value)
    if isinstance(value, np.int32):
        return _U32.pack(_NUMPY_TYPES["int32"]) + _I32.pack(value)
    if isinstance(value, list):
        strings = b"".join(map(_string, value))
        return _U32.pack(_ARRAY_TYPE) + _U32.pack(_STRING_TYPE) + _U64.pack(len(value)) + strings
    kind = _NUMPY_TYPES[value.dtype.name]
    data = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return _U32.pack(_ARRAY_TYPE) + _U32.pack(kind) + _U64.pack(len(value)) + data
