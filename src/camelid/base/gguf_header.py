"""The header of a GGUF file: metadata and the table of tensors, every number of it checked before it is used.

    header = read_gguf_header(Path("model.gguf"))
    header.metadata["general.architecture"], header.tensors["token_embd.weight"].shape

The file is untrusted. A count or a length is compared with the bytes that are left before anything of that size is
made, so memory stays within a small multiple of the header's own size. Layout: GGUF 2 and 3, ggml docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from camelid.base.errors import FormatError
from camelid.base.files import existing_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class GGMLType:
    """A tensor type of GGUF: rows of blocks of `block_size` elements in `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


GGML_TYPES: Final = {
    0: GGMLType("F32", 1, 4),
    1: GGMLType("F16", 1, 2),
    2: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34),
    9: GGMLType("Q8_1", 32, 36),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56),
    30: GGMLType("BF16", 1, 2),
    34: GGMLType("TQ1_0", 256, 54),
    35: GGMLType("TQ2_0", 256, 66),
    39: GGMLType("MXFP4", 32, 17),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
}

GET_IT_AGAIN: Final = "the file may be incomplete or damaged: get it again"
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_KEY_BYTES: Final = 65_535
_MAX_NAME_BYTES: Final = 64
_MAX_DIMENSIONS: Final = 4
_MAX_NESTING: Final = 4
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_SCALARS: Final = {kind: struct.Struct("<" + dtype.char) for kind, dtype in _NUMBERS.items() if kind < 10} | {
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_SMALLEST_ENTRY: Final = 8 + 1 + 4 + 1
"""Bytes of a metadata entry with a one-byte key and a one-byte value."""
_SMALLEST_TENSOR: Final = 8 + 1 + 4 + 8 + 4 + 8
"""Bytes of a tensor's description with a one-byte name and one dimension."""
_SMALLEST_ELEMENT: Final = {_STRING: 8, _ARRAY: 4 + 8}


@dataclass(frozen=True)
class GGUFTensorInfo:
    """One tensor of a GGUF file; its bytes are known to lie inside the file."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as torch has it: GGUF's dimensions reversed."""
    type_id: int
    """A key of `GGML_TYPES`."""
    type_name: str
    offset: int
    """From the start of the file."""
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says before its tensor data."""

    version: int
    metadata: dict[str, Any]
    """Python numbers, booleans and strings; arrays of strings as `list[str]`, of numbers as numpy arrays."""
    tensors: dict[str, GGUFTensorInfo]
    alignment: int
    data_start: int
    """Where tensor data begins, in bytes from the start of the file."""


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read and check everything before the tensor data of a GGUF file.

    Raises:
        NotFoundError: there is no such file.
        FormatError: the file is no GGUF file of version 2 or 3, is truncated or contradicts itself.
    """
    with existing_file(path).open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise FormatError("the file is empty", where=f"{path}, byte 0") from None
    with content:
        return _Reader(path, content).header()


class _Reader:
    """A cursor over the file; `position` is what an error names."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.size = len(content)
        self.position = 0

    def header(self) -> GGUFHeader:
        version = self.version()
        num_tensors = self.count("tensors", _SMALLEST_TENSOR)
        num_entries = self.count("metadata entries", _SMALLEST_ENTRY)
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            start = self.position
            key = self.string("metadata key", _MAX_KEY_BYTES)
            if not key or key in metadata:
                raise self.error(f"the metadata key '{key}' appears twice" if key else "a metadata key is empty", start)
            metadata[key] = self.value(self.number(_U32))
        alignment = self.alignment(metadata)
        described: list[tuple[int, GGUFTensorInfo]] = [self.tensor(alignment) for _ in range(num_tensors)]
        data_start = self.position + -self.position % alignment
        return GGUFHeader(version, metadata, self.placed(described, data_start), alignment, data_start)

    def version(self) -> int:
        magic = self.content[:4]
        if magic != _MAGIC:
            hint = "a GGUF file starts with 'GGUF'"
            if magic[:1] == b"<" or magic == b"vers":
                hint += "; this looks like a web page or a Git LFS pointer: download the file itself"
            raise self.error("this is not a GGUF file", hint=hint)
        self.position = 4
        version: int = self.number(_U32)
        if version in _VERSIONS:
            return version
        self.position -= 4
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise self.error("this is a big-endian GGUF file", hint="convert it to little-endian first")
        raise self.error(
            f"GGUF version {version} is not supported", hint="versions 2 and 3 are; convert the model again"
        )

    def count(self, what: str, smallest: int) -> int:
        """A u64 that the bytes after it can hold, at `smallest` bytes each."""
        count: int = self.number(_U64)
        if count > (self.size - self.position) // smallest:
            self.position -= 8
            raise self.error(f"{count} {what} do not fit into a file of {self.size} bytes")
        return count

    def number(self, kind: struct.Struct) -> Any:
        try:
            value = kind.unpack_from(self.content, self.position)[0]
        except struct.error:
            raise self.error("the file ends in the middle of its header") from None
        self.position += kind.size
        return value

    def string(self, what: str, longest: int | None = None) -> str:
        length: int = self.number(_U64)
        if length > self.size - self.position or (longest is not None and length > longest):
            self.position -= 8
            raise self.error(f"a {what} of {length} bytes is longer than the {'format allows' if longest else 'file'}")
        start = self.position
        self.position += length
        return self.text(self.content[start : self.position], start)

    def text(self, encoded: bytes, start: int) -> str:
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            raise self.error("a string is not UTF-8", start) from None

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string("string")
        if kind == _ARRAY:
            return self.array(depth)
        if kind not in _SCALARS:
            self.position -= 4
            raise self.error(f"unknown metadata value type {kind}")
        value = self.number(_SCALARS[kind])
        if kind == _BOOL:
            self.require_booleans(value <= 1, self.position - 1)
            return bool(value)
        return value

    def array(self, depth: int) -> Any:
        start = self.position
        kind: int = self.number(_U32)
        dtype = _NUMBERS.get(kind)
        if dtype is None and kind not in _SMALLEST_ELEMENT:
            raise self.error(f"unknown array element type {kind}", start)
        count = self.count("array elements", dtype.itemsize if dtype else _SMALLEST_ELEMENT[kind])
        if dtype is not None:
            return self.numbers(kind, dtype, count)
        if kind == _STRING:
            return self.strings(count)
        if depth == _MAX_NESTING:
            raise self.error(f"arrays are nested more than {_MAX_NESTING} deep", start)
        return [self.array(depth + 1) for _ in range(count)]

    def numbers(self, kind: int, dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
        start = self.position
        self.position += count * dtype.itemsize
        array: np.ndarray[Any, Any] = np.frombuffer(self.content[start : self.position], dtype)
        if kind == _BOOL:
            self.require_booleans(not count or array.max() <= 1, start)
            return array.view(np.bool_)
        return array

    def strings(self, count: int) -> list[str]:
        """Vocabularies hold a hundred thousand strings and more, so the loop keeps everything in local names."""
        content, size, position = self.content, self.size, self.position
        unpack: Callable[[mmap.mmap, int], tuple[int]] = _U64.unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                end = position + 8 + unpack(content, position)[0]
                if end > size:
                    raise self.error("a string is longer than the file", position)
                strings.append(content[position + 8 : end].decode())
                position = end
        except struct.error:
            raise self.error("the file ends in the middle of its header", position) from None
        except UnicodeDecodeError:
            raise self.error("a string is not UTF-8", position) from None
        self.position = position
        return strings

    def require_booleans(self, holds: object, start: int) -> None:
        if not holds:
            raise self.error("a boolean is neither 0 nor 1", start)

    def alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        # type(), because True is an int
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment >= 2**32:
            raise self.error(f"general.alignment is {alignment!r}, not a power of two")
        return alignment

    def tensor(self, alignment: int) -> tuple[int, GGUFTensorInfo]:
        """A tensor's description, its offset still relative to the data; and where in the header it starts."""
        start = self.position
        error = partial(self.error, position=start)
        name = self.string("tensor name", _MAX_NAME_BYTES)
        if not name:
            raise error("a tensor has no name")
        num_dimensions: int = self.number(_U32)
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise error(f"the tensor '{name}' has {num_dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
        shape = tuple(self.number(_U64) for _ in range(num_dimensions))[::-1]
        type_id: int = self.number(_U32)
        offset: int = self.number(_U64)
        ggml_type = GGML_TYPES.get(type_id)
        if ggml_type is None:
            raise error(f"the tensor '{name}' has the unknown type {type_id}", hint="the file may need a newer camelid")
        num_elements = math.prod(shape)
        if num_elements == 0 or num_elements >= 2**63:
            raise error(f"the tensor '{name}' has the impossible shape {list(shape)}")
        if shape[-1] % ggml_type.block_size:
            raise error(
                f"the rows of '{name}' ({shape[-1]}) are not whole {ggml_type.name} blocks of {ggml_type.block_size}"
            )
        if offset % alignment:
            raise error(f"the tensor '{name}' starts at {offset}, which is not a multiple of the alignment {alignment}")
        num_bytes = num_elements // ggml_type.block_size * ggml_type.block_bytes
        return start, GGUFTensorInfo(name, shape, type_id, ggml_type.name, offset, num_bytes)

    def placed(self, described: list[tuple[int, GGUFTensorInfo]], data_start: int) -> dict[str, GGUFTensorInfo]:
        """The tensors with absolute offsets; each inside the file, none over another, no name twice."""
        tensors: dict[str, GGUFTensorInfo] = {}
        for start, info in described:
            if info.name in tensors:
                raise self.error(f"the tensor '{info.name}' appears twice", start)
            offset = data_start + info.offset
            if offset + info.num_bytes > self.size:
                raise self.error(
                    f"the tensor '{info.name}' ends at byte {offset + info.num_bytes} of a file of {self.size}",
                    start,
                )
            tensors[info.name] = GGUFTensorInfo(
                info.name, info.shape, info.type_id, info.type_name, offset, info.num_bytes
            )
        end, previous = data_start, ""
        for info in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if info.offset < end:
                raise self.error(f"the tensors '{previous}' and '{info.name}' overlap", info.offset)
            end, previous = info.offset + info.num_bytes, info.name
        return tensors

    def error(self, what: str, position: int | None = None, *, hint: str = GET_IT_AGAIN) -> FormatError:
        where = self.position if position is None else position
        return FormatError(what, where=f"{self.path}, byte {where}", hint=hint)
