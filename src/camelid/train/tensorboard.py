"""TensorBoard event files, written without TensorBoard.

A file is a row of records: u64 length, masked CRC-32C of it, the bytes, masked CRC-32C of them. Each record is an
`Event` in protobuf's wire format: wall_time (field 1, double), step (2, varint), and either file_version (3, string)
or summary (5), which holds values (1) of tag (1, string) and simple_value (2, float). Sources: tensorflow's
core/lib/io/record_writer.h and core/util/event.proto, core/framework/summary.proto.
"""

from __future__ import annotations

import struct
import time
from functools import cache
from typing import IO, TYPE_CHECKING

from camelid.base.files import disk_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CASTAGNOLI = 0x82F63B78
"""CRC-32C's polynomial, bits reversed."""


class EventFile:
    """Appends scalars to a new event file; each start of a run has one, and TensorBoard joins them.

    Args:
        folder: created if missing.
        first_step: points of earlier files from this step on are dropped when shown: a killed run had written them.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.camelid"
        self._file: IO[bytes] = self._path.open("ab")
        self._write(_double(1, now) + _bytes(3, b"brain.Event:2"))
        # SessionLog (field 7) with status START (field 1 = 1) is what makes TensorBoard drop later points.
        self._write(_double(1, now) + _varint(2, first_step) + _bytes(7, _varint(1, 1)))

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one step.

        Raises:
            ResourceError: the disk is full.
        """
        values = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in scalars.items())
        self._write(_double(1, time.time()) + _varint(2, step) + _bytes(5, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        try:
            self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self._path) from error


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, §B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (CASTAGNOLI if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _double(field: int, value: float) -> bytes:
    return _number(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _number(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value
