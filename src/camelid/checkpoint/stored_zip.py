"""Zip archives whose members are stored as they are, so that they can be mapped into memory: torch.save's container.

Nothing in the directory is believed before it has been held against the file's size, and nothing is ever unpacked.
(PKWARE, APPNOTE.TXT 6.3.10, §4.3: local headers, central directory, ZIP64 records.)
"""

from __future__ import annotations

import os
import struct
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from camelid.base.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

MARK = b"PK\x03\x04"
"""What a zip archive with a member in it starts with."""

ALIGNMENT = 64
"""Where members begin, as torch.save aligns them: wide enough for every element type and vector register."""

MAX_DIRECTORY_BYTES = 64 << 20
"""A model-parallel shard of Llama 3.1 405B lists 1,138 tensors in about 100 kB."""

_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_16, _MAX_32 = 2**16 - 1, 2**32 - 1
_ZIP_64 = 1
"""The id of the extra field that holds what 32 bits do not."""


@dataclass(frozen=True)
class Member:
    """A stored member and where its bytes lie."""

    name: str
    begin: int
    """Byte offset from the start of the file."""
    num_bytes: int


def read_directory(file: IO[bytes], path: Path) -> dict[str, Member]:
    """The members of an archive by name; their bytes are not touched.

    Raises:
        FormatError: the archive is damaged, or a member is compressed or encrypted; `where` names file and offset.
    """
    size = os.fstat(file.fileno()).st_size
    begin, length, count = _find_directory(file, size, path)
    if length > MAX_DIRECTORY_BYTES or begin + length > size or count * _ENTRY.size > length:
        raise _damaged(path, begin, f"its directory of {count} members and {length} bytes does not fit into the file")
    file.seek(begin)
    directory = file.read(length)
    members: dict[str, Member] = {}
    position = 0
    for _ in range(count):
        entry, position = _read_entry(directory, position, begin, path)
        if entry.name in members:
            raise _damaged(path, begin + position, f"the member {entry.name!r} is there twice")
        members[entry.name] = _place(file, entry, size, path)
    return members


def _find_directory(file: IO[bytes], size: int, path: Path) -> tuple[int, int, int]:
    """Offset, bytes and number of entries of the central directory."""
    tail_size = min(size, _END.size + _MAX_16)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + _END.size > len(tail):
        raise _damaged(path, size, "the end of the archive is missing", "the file is cut short: fetch it again")
    _, _, _, _, count, length, begin, _ = _END.unpack_from(tail, end)
    if count < _MAX_16 and length < _MAX_32 and begin < _MAX_32:
        return begin, length, count
    locator = size - tail_size + end - _LOCATOR_64.size
    if locator < 0:
        raise _damaged(path, size - tail_size + end, "the 64-bit end record is missing")
    file.seek(locator)
    mark, _, offset, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
    if mark != b"PK\x06\x07" or offset + _END_64.size > size:
        raise _damaged(path, locator, "the 64-bit end record is missing")
    file.seek(offset)
    mark, _, _, _, _, _, _, count, length, begin = _END_64.unpack(file.read(_END_64.size))
    if mark != b"PK\x06\x06":
        raise _damaged(path, offset, "the 64-bit end record is missing")
    return begin, length, count


def _read_entry(directory: bytes, position: int, begin: int, path: Path) -> tuple[Member, int]:
    """An entry, with the offset of its local header in place of its bytes', and where the next one starts."""
    where = begin + position
    if position + _ENTRY.size > len(directory):
        raise _damaged(path, where, "the directory is cut short")
    fields = _ENTRY.unpack_from(directory, position)
    mark, flags, method = fields[0], fields[3], fields[4]
    packed, unpacked, name_size, extra_size, comment_size = fields[8:13]
    header = fields[16]
    if mark != b"PK\x01\x02":
        raise _damaged(path, where, "the directory has no entry here")
    position += _ENTRY.size
    stop = position + name_size + extra_size + comment_size
    if stop > len(directory):
        raise _damaged(path, where, "the directory is cut short")
    name = directory[position : position + name_size].decode("utf-8", "backslashreplace")
    if packed == _MAX_32 or unpacked == _MAX_32 or header == _MAX_32:
        extra = directory[position + name_size : position + name_size + extra_size]
        wide = [value == _MAX_32 for value in (unpacked, packed, header)]
        values = iter(_wide_values(extra, sum(wide), path, where))
        unpacked, packed, header = (
            next(values) if is_wide else value for value, is_wide in zip((unpacked, packed, header), wide, strict=True)
        )
    if method != zipfile.ZIP_STORED or packed != unpacked or flags & 1:
        raise _damaged(path, where, f"the member {name!r} is compressed or encrypted", "torch.save does neither")
    return Member(name, header, unpacked), stop


def _wide_values(extra: bytes, count: int, path: Path, where: int) -> tuple[int, ...]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _ZIP_64 and length >= 8 * count and position + 4 + length <= len(extra):
            return struct.unpack_from(f"<{count}Q", extra, position + 4)
        position += 4 + length
    raise _damaged(path, where, "the 64-bit sizes of an entry are missing")


def _place(file: IO[bytes], entry: Member, size: int, path: Path) -> Member:
    """The entry with the offset of its bytes, which follow a header of their own."""
    if entry.begin + _LOCAL.size > size:
        raise _damaged(path, entry.begin, f"the member {entry.name!r} lies behind the file's end")
    file.seek(entry.begin)
    fields = _LOCAL.unpack(file.read(_LOCAL.size))
    if fields[0] != MARK:
        raise _damaged(path, entry.begin, f"the member {entry.name!r} does not start here")
    begin = entry.begin + _LOCAL.size + fields[9] + fields[10]
    if begin + entry.num_bytes > size:
        raise _damaged(path, begin, f"the member {entry.name!r} has {entry.num_bytes} bytes, more than follow")
    return Member(entry.name, begin, entry.num_bytes)


def _damaged(path: Path, offset: int, what: str, hint: str = "fetch or write the file again") -> FormatError:
    return FormatError(f"not a sound zip archive: {what}", where=f"{path}, byte {offset}", hint=hint)


@contextmanager
def writing(file: IO[bytes]) -> Iterator[Callable[[str, int, Iterable[bytes | memoryview]], None]]:
    """Gives a function that adds a member: its name, its size and its bytes, in as many pieces as is convenient.

    Members begin at multiples of `ALIGNMENT` and carry no clock time: the same contents give the same file.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, num_bytes: int, pieces: Iterable[bytes | memoryview]) -> None:
            wide = num_bytes * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides it
            info = zipfile.ZipInfo(name)
            header = _LOCAL.size + len(name.encode()) + (20 if wide else 0)
            padding = -(file.tell() + header + 4) % ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            info.file_size = num_bytes
            with archive.open(info, "w", force_zip64=wide) as member:
                for piece in pieces:
                    member.write(piece)

        yield add
