"""`lineage.json`: what a checkpoint was made from, and the hash of every file in it.

    {"format": 1, "camelid": "0.1.0", "parent": …, …, "files": {"config.json": {"sha256": "…", "bytes": 512}, …}}

It holds no clock time and no machine's name: the same work gives the same file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.files import existing_file, sha256, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LINEAGE = "lineage.json"
FORMAT = 1

_RESERVED = frozenset({"format", "camelid", "files"})


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Lineage:
    """What is known of a checkpoint's origin."""

    camelid: str
    """The version that wrote it."""
    files: Mapping[str, FileRecord]
    """By path relative to the folder, with forward slashes."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the writer added: the parent, hashes of data and recipe."""


def write_lineage(folder: Path, facts: Mapping[str, Any] | None = None) -> Lineage:
    """Hash every file in the folder and write `lineage.json` beside them.

    Args:
        folder: a finished checkpoint.
        facts: values that JSON can hold; `format`, `camelid` and `files` are taken.
    """
    return _write(folder / LINEAGE, _files(folder), facts)


def write_file_lineage(file: Path, facts: Mapping[str, Any] | None = None) -> Lineage:
    """Hash one file that is a whole model and write `<its name>.lineage.json` beside it; arguments as above."""
    return _write(file.with_name(f"{file.name}.{LINEAGE}"), {file.name: file}, facts)


def _write(document_path: Path, paths: Mapping[str, Path], facts: Mapping[str, Any] | None) -> Lineage:
    from camelid import __version__

    facts = dict(facts or {})
    taken = _RESERVED & facts.keys()
    assert not taken, f"lineage already has {sorted(taken)}"
    files = {name: FileRecord(sha256(path), path.stat().st_size) for name, path in paths.items()}
    document = {
        "format": FORMAT,
        "camelid": __version__,
        **facts,
        "files": {name: {"sha256": record.sha256, "bytes": record.bytes} for name, record in files.items()},
    }
    write_text(document_path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return Lineage(__version__, files, facts)


def read_lineage(folder: Path) -> Lineage:
    """What a folder's `lineage.json` says.

    Raises:
        NotFoundError: the folder has none.
        FormatError: it is not what this version writes.
    """
    path = existing_file(folder / LINEAGE)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise FormatError(f"unknown lineage format {document['format']!r}", where=path)
        files = {name: FileRecord(str(one["sha256"]), int(one["bytes"])) for name, one in document["files"].items()}
        facts = {key: value for key, value in document.items() if key not in _RESERVED}
        return Lineage(str(document["camelid"]), files, facts)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"not a lineage file: {error!r}", where=path) from error


def verify_lineage(folder: Path) -> Lineage:
    """Hold every file of a folder against its `lineage.json`.

    Raises:
        NotFoundError: the folder has none, or a file it names is missing.
        FormatError: a file has changed, or is not named.
    """
    lineage = read_lineage(folder)
    present = _files(folder)
    for name, record in lineage.files.items():
        if name not in present:
            raise NotFoundError(f"'{name}' is missing", where=folder, hint=f"{LINEAGE} names it: restore it")
        if present[name].stat().st_size != record.bytes or sha256(present[name]) != record.sha256:
            raise FormatError(f"'{name}' is not the file that {LINEAGE} names", where=folder)
    if unknown := sorted(present.keys() - lineage.files.keys()):
        raise FormatError(f"{LINEAGE} does not name {', '.join(unknown)}", where=folder)
    return lineage


def _files(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if name != LINEAGE}
