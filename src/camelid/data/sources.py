"""Corpora on disk: text, JSON lines and parquet, plain or in gzip or zstandard, one row at a time.

    for document in read_documents(["corpus/", "books/*.txt.gz"]):
        print(document.id, document.num_bytes)

What a file holds is decided once, before any is read: the compression by its first bytes, the format by its suffix
(`.gz` and `.zst` taken off) or, for a file named one by one with another suffix, by its first bytes. Order is that of
the patterns, and inside a pattern by path; a file matched twice is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.files import matching_paths
from camelid.base.registry import Registry
from camelid.data.compression import compression_of, open_binary
from camelid.data.document import Document

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class SourceFile:
    """A file of a corpus and how to read it."""

    path: Path
    format: str
    """A name in SOURCES."""
    compression: str | None
    """ "gz", "zst" or None."""


@dataclass(frozen=True)
class Record:
    """One record of a file."""

    number: int
    """Line, row or piece, from 1."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ReadOptions:
    """How records become documents."""

    text_field: str = "text"
    """The field of a JSON or parquet row that holds the text."""
    separator: str | None = None
    """The line that stands between two documents of a text file, such as `<|endoftext|>`; None: there is none, and a
    text file is one document, or several of about 1 MiB cut between paragraphs where it is longer."""


RecordReader = Callable[[SourceFile, ReadOptions], Iterator[Record]]

SOURCES: Registry[RecordReader] = Registry(
    "source format",
    "camelid.sources",
    {
        "txt": "camelid.data.text_files:read_text_records",
        "md": "camelid.data.text_files:read_text_records",
        "jsonl": "camelid.data.text_files:read_json_records",
        "ndjson": "camelid.data.text_files:read_json_records",
        "json": "camelid.data.text_files:read_json_records",
        "parquet": "camelid.data.parquet_files:read_parquet_records",
    },
)
"""File suffix → the function that reads such a file's records."""


def read_documents(patterns: Sequence[str], options: ReadOptions | None = None) -> Iterator[Document]:
    """Every document of the files, folders (with all below them) and globs named, one at a time.

    Raises:
        NotFoundError: a pattern matches no file that camelid reads.
        FormatError: a file is damaged, not UTF-8 or has a malformed row (file and line are named), or there is no
            document in all of them.
    """
    found = False
    for file in find_files(patterns):
        for document in documents_of(file, options or ReadOptions()):
            found = True
            yield document
    if not found:
        raise empty_corpus(patterns)


def find_files(patterns: Sequence[str]) -> list[SourceFile]:
    """The files that the patterns name, in the order in which they are read.

    Raises:
        NotFoundError: a pattern matches no file that camelid reads.
    """
    if not patterns:
        raise NotFoundError("no corpus is named", hint="name files, folders or globs, such as 'texts/**/*.jsonl.gz'")
    files: dict[Path, SourceFile] = {}
    for pattern in patterns:
        matched = _match(pattern)
        if not matched:
            suffixes = ", ".join(f".{name}" for name in SOURCES.names())
            raise NotFoundError(
                f"'{pattern}' matches no file to read",
                hint=f"name files, folders or globs; camelid reads {suffixes}, each also with .gz or .zst",
            )
        for path in matched:
            files.setdefault(path.resolve(), _identify(path))
    return list(files.values())


def read_records(file: SourceFile, options: ReadOptions | None = None) -> Iterator[Record]:
    """The records of one file; a text file's rows have the one field `text`.

    Raises:
        FormatError: the file is damaged, not UTF-8 or has a malformed row.
    """
    return SOURCES.load(file.format)(file, options or ReadOptions())


def documents_of(file: SourceFile, options: ReadOptions) -> Iterator[Document]:
    """The documents of one file.

    Raises:
        FormatError: as `read_records`, or a row without a text.
    """
    source = str(file.path)
    field = "text" if file.format in ("txt", "md") else options.text_field
    for row in read_records(file, options):
        where = f"{source}:{row.number}"
        text = row.values.get(field)
        if not isinstance(text, str):
            problem = f"'{field}' is not a text" if field in row.values else f"the row has no field '{field}'"
            raise FormatError(problem, where=where, hint=f"its fields are {', '.join(row.values)}; name the text field")
        yield Document(_encodable(text, where), where, source)


def empty_corpus(patterns: Sequence[str]) -> FormatError:
    """The error for a corpus without a single document."""
    return FormatError(
        "the corpus is empty: no file in it holds a document",
        where=", ".join(patterns),
        hint="check that the files are not empty and that the patterns name the right folder",
    )


def _encodable(text: str, where: str) -> str:
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"half of a surrogate pair stands alone at character {error.start}, which no UTF-8 text can hold",
            where=where,
            hint="the text was cut inside an escaped character; repair or remove the row",
        ) from error
    return text


def _match(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    matched = matching_paths(pattern)
    # A set, as `**` matches a folder and what is in it; sorted, as the file system gives them in any order.
    found = {file for match in matched for file in (match.rglob("*") if match.is_dir() else [match])}
    return sorted(file for file in found if _format_of_name(file) and not _hidden(file, path) and file.is_file())


def _hidden(file: Path, pattern: Path) -> bool:
    """Whether a dot begins the name of the file, or of a folder it is in, that the pattern does not itself name."""
    return any(part.startswith(".") and part not in pattern.parts for part in file.parts)


def _format_of_name(path: Path) -> str | None:
    suffixes = [suffix.lower().removeprefix(".") for suffix in path.suffixes]
    if suffixes and suffixes[-1] in ("gz", "zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SOURCES.names() else None


def _identify(path: Path) -> SourceFile:
    compression = compression_of(path)
    named = _format_of_name(path)
    if named:
        return SourceFile(path, named, compression)
    with open_binary(path, compression) as file:
        return SourceFile(path, _format_of_content(file), compression)


def _format_of_content(file: IO[bytes]) -> str:
    head = file.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.lstrip().startswith(b"{") else "txt"
