"""Rows of text and JSON-lines files."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from camelid.base.errors import FormatError
from camelid.base.files import format_bytes
from camelid.data.compression import open_binary
from camelid.data.sources import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.data.sources import ReadOptions, SourceFile

PIECE_BYTES = 1 << 20
"""Past this length a text file without separator goes on as a new document at the next paragraph."""
MAX_LINE_BYTES = 1 << 28
"""A longer line is refused: it would have to lie in memory as a whole."""


def read_text_records(file: SourceFile, options: ReadOptions) -> Iterator[Record]:
    """The documents of a text file, without empty ones.

    Raises:
        FormatError: not UTF-8, naming the line.
    """
    number, size = 1, 0
    lines: list[str] = []
    with open_binary(file.path, file.compression) as stream:
        for _, line in _lines(stream, file):
            if options.separator is None:
                ends, keep = size >= PIECE_BYTES and (not line.strip() or size >= 2 * PIECE_BYTES), True
            else:
                ends, keep = line.strip() == options.separator, line.strip() != options.separator
            if ends:
                if text := "".join(lines).strip("\n"):
                    yield Record(number, {"text": text})
                    number += 1
                lines, size = [], 0
            if keep:
                lines.append(line)
                size += len(line)
    if text := "".join(lines).strip("\n"):
        yield Record(number, {"text": text})


def read_json_records(file: SourceFile, options: ReadOptions) -> Iterator[Record]:
    """One JSON object a line; blank lines are passed over.

    Raises:
        FormatError: a line is not UTF-8 or no JSON object, naming the line.
    """
    del options
    with open_binary(file.path, file.compression) as stream:
        for number, line in _lines(stream, file):
            if not line.strip():
                continue
            yield Record(number, _object(line, f"{file.path}:{number}"))


def _object(line: str, where: str) -> dict[str, Any]:
    hint = "each line must be one complete JSON object"
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        if line.lstrip().startswith("["):
            hint += "; a JSON array has to be written one element a line"
        raise FormatError(f"malformed row: {error}", where=where, hint=hint) from error
    if not isinstance(values, dict):
        raise FormatError(f"the row is a JSON {type(values).__name__}, not an object", where=where, hint=hint)
    return values


def _lines(stream: IO[bytes], file: SourceFile) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{file.path}:{number}"
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise FormatError(
                    "the file is UTF-16, not UTF-8", where=where, hint="convert it: iconv -f UTF-16 -t UTF-8"
                )
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > MAX_LINE_BYTES:
            raise FormatError(
                f"the line is longer than {format_bytes(MAX_LINE_BYTES)}", where=where, hint="break the text into lines"
            )
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"not UTF-8: byte {raw[error.start]:#04x} at offset {error.start} of the line",
                where=where,
                hint="convert the file, for instance with iconv -f WINDOWS-1252 -t UTF-8",
            ) from error
