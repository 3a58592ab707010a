"""The safetensors container: a bounded reader with memory-mapped tensors, and a streaming writer.

A file is a little-endian u64 N, N bytes of JSON `{name: {"dtype", "shape", "data_offsets"}}`, and the tensors' bytes,
row-major, little-endian and without gaps; offsets count from the end of the JSON. A `__metadata__` entry maps strings
to strings. (Specification: the README of huggingface/safetensors, "Format".)

Nothing in a header is believed before it has been held against the file's size.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError, did_you_mean
from camelid.base.files import existing_file, format_bytes
from camelid.base.strict_json import parse_json
from camelid.checkpoint.pages import map_privately, release_pages

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's own limit; Llama 3.1 405B needs 140 kB for all its tensors."""

MAX_ELEMENTS = 2**63 - 1
"""What torch's sizes and strides can hold."""

MAX_DIMENSIONS = 8
"""No weight has more; it bounds the arithmetic on a lying header."""

DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""The container's dtype → torch's name and bytes per element."""

_CODES = {name: code for code, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file."""

    dtype: str
    """torch's name."""
    shape: tuple[int, ...]
    begin: int
    """Byte offset from the start of the file."""
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself, held against its size."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    num_bytes: int
    """Of the length field and the JSON together: where the tensors begin."""


class SafetensorsFile:
    """An open safetensors file whose tensors are views into a private memory map.

    Writing into such a tensor never reaches the file. The file must not be cut short while its tensors are in use.

    Raises:
        NotFoundError: there is no such file.
        FormatError: the header is damaged, or does not describe the bytes that follow it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with existing_file(path).open("rb") as file:
            self.header = read_header(file, path)
            self._map: mmap.mmap | None = map_privately(file)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The tensors by name."""
        return self.header.entries

    def read(self, name: str) -> Tensor:
        """One tensor, without copying it (but where its offset is no multiple of its element's size).

        Raises:
            NotFoundError: the file holds no such tensor.
        """
        import torch

        assert self._map is not None, f"{self.path} is closed"
        entry = self.entries.get(name)
        if entry is None:
            raise NotFoundError(f"no tensor '{name}'", where=self.path, hint=did_you_mean(name, self.entries))
        dtype = getattr(torch, entry.dtype)
        if entry.num_bytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        data_N = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.num_bytes, offset=entry.begin)
        if entry.begin % dtype.itemsize:
            data_N = data_N.clone()
        return data_N.view(dtype).view(entry.shape)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor has taken; see `Checkpoint.release`."""
        if self._map is not None:
            release_pages(self._map, self.entries[name].begin, self.entries[name].num_bytes)

    def close(self) -> None:
        """Let go of the file; the map itself lives as long as a tensor looks into it."""
        self._map = None


def read_header(file: IO[bytes], path: Path) -> Header:
    """Read and check a file's header; the tensors' bytes are not touched.

    Raises:
        FormatError: anything in it is not as the format wants it; `where` names the file and the byte offset.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    if len(head) < 8:
        raise _damaged(path, 0, f"{size} bytes are too few")
    (length,) = struct.unpack("<Q", head)
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, 0, f"the header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    if 8 + length > size:
        raise _damaged(path, 0, f"the header claims {length} bytes but the file has {size}")
    fields = _parse(path, file.read(length))
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, 8, "'__metadata__' must map strings to strings")
    start = 8 + length
    entries = {name: _entry(path, name, field, start) for name, field in fields.items()}
    _check_layout(path, entries, start, size)
    return Header(entries, metadata, start)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _damaged(path, 8, "the header is not a JSON object")
    try:
        fields = parse_json(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, 8, f"the header is not JSON: {error}") from error
    assert isinstance(fields, dict)
    return fields


def _entry(path: Path, name: str, field: Any, start: int) -> Entry:
    def fail(what: str) -> FormatError:
        return _damaged(path, 8, f"tensor {_short(name)}: {what}")

    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("expected exactly 'dtype', 'shape' and 'data_offsets'")
    code, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise fail(f"unknown dtype {_short(code)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise fail(f"impossible shape {_short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"impossible data_offsets {_short(offsets)}")
    dtype, itemsize = DTYPES[code]
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        raise fail(f"{code} {shape} takes {math.prod(shape) * itemsize} bytes, but data_offsets span {end - begin}")
    return Entry(dtype, tuple(shape), start + begin, end - begin)


def _check_layout(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """The tensors must lie end to end and fill the file."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].num_bytes)):
        if entry.begin != position:
            what = "overlaps the one before it" if entry.begin < position else "leaves a gap before it"
            raise _damaged(path, entry.begin, f"tensor {_short(name)} {what}")
        position += entry.num_bytes
        if position > size:
            raise _damaged(
                path,
                entry.begin,
                f"tensor {_short(name)} ends at byte {position} but the file has {size}",
                hint=f"the file is cut short by {format_bytes(position - size)} or more; fetch it again",
            )
    if position < size:
        raise _damaged(path, position, f"{size - position} bytes follow the last tensor")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_ELEMENTS for item in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _damaged(path: Path, offset: int, what: str, hint: str = "fetch or write the file again") -> FormatError:
    return FormatError(f"not a sound safetensors file: {what}", where=f"{path}, byte {offset}", hint=hint)


def write_safetensors(
    file: IO[bytes],
    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file one tensor at a time; `read` is asked for each when its turn has come.

    Tensors of wide elements come first, so that every tensor is aligned to its element's size.

    Args:
        file: where to write; positioned at 0.
        tensors: name, dtype and shape of each.
        read: gives a tensor of that shape on any device; it is converted to that dtype.
        metadata: free strings for the header.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor[1].itemsize)
    file.write(header_bytes(ordered, metadata))
    for name, dtype, shape in ordered:
        tensor = read(name).detach().to(device="cpu", dtype=dtype).contiguous()
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} is not {shape}"
        if tensor.numel():
            file.write(tensor_bytes(tensor))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without copying them."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def header_size(tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> int:
    """Bytes of the header that `write_safetensors` writes."""
    return len(header_bytes(tensors, metadata))


def header_bytes(
    tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None
) -> bytes:
    """The header that `write_safetensors` writes for tensors in this order, with its length before it."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * dtype.itemsize
        code = _CODES[str(dtype).removeprefix("torch.")]
        fields[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
