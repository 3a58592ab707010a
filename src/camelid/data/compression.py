"""Plain, gzip and zstandard files read alike; the first bytes tell which one a file is."""

from __future__ import annotations

import gzip
import io
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.files import existing_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
"""First bytes → compression: RFC 1952 section 2.3.1 and RFC 8878 section 3.1.1."""

COMPRESSED_BYTES_AT_ONCE = 1 << 12
"""Zstandard blocks of 4 bytes may hold 128 kB (RFC 8878 section 3.1.1.2), so this bounds what lies in memory."""


def compression_of(path: Path) -> str | None:
    """The file's compression, or None.

    Raises:
        NotFoundError: no such file, or one that may not be read.
    """
    with _opened(existing_file(path)) as file:
        head = file.read(4)
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


@contextmanager
def open_binary(path: Path, compression: str | None) -> Iterator[IO[bytes]]:
    """Open a file for reading and decompress on the way; what is read arrives in bounded pieces.

    Raises:
        FormatError: the compressed data is cut off or damaged.
    """
    import zstandard

    try:
        with _opened(path) as raw:
            if compression == "gz":
                with gzip.GzipFile(fileobj=raw) as file:
                    yield cast("IO[bytes]", file)
            elif compression == "zst":
                with io.BufferedReader(_ZstdFrames(raw), 1 << 16) as file:
                    yield cast("IO[bytes]", file)
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise FormatError(
            f"the compressed data is cut off or damaged: {error}",
            where=path,
            hint="fetch the file again, or check it with gzip -t or zstd -t",
        ) from error


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except PermissionError as error:
        raise NotFoundError(
            "the file may not be read", where=path, hint="change its permissions, or leave it out"
        ) from error


class _ZstdFrames(io.RawIOBase):
    """Decompresses frame after frame; unlike the library's own stream, it does not take a cut file for a whole one."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self.raw = raw
        self.library = zstandard.ZstdDecompressor()
        self.frame = self.library.decompressobj()
        self.compressed = self.text = b""
        self.inside_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            self.compressed = self.compressed or self.raw.read(COMPRESSED_BYTES_AT_ONCE)
            if not self.compressed:
                if self.inside_frame:
                    raise EOFError("the last frame does not end")
                return 0
            self.text = self.frame.decompress(self.compressed)
            self.compressed, self.inside_frame = self.frame.unused_data, not self.frame.eof
            if self.frame.eof:
                self.frame = self.library.decompressobj()
        count = min(len(buffer), len(self.text))
        buffer[:count] = self.text[:count]
        self.text = self.text[count:]
        return count
