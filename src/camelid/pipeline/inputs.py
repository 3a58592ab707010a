"""The files that a stage reads from outside the pipeline, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from camelid.base.errors import NotFoundError
from camelid.base.files import matching_paths, sha256

if TYPE_CHECKING:
    from collections.abc import Sequence


class InputFile(BaseModel):
    """One file as it was when it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    bytes: int


def input_files(sources: Sequence[str]) -> list[Path]:
    """The files that sources name, each once, in an order that the file system has no part in.

    Args:
        sources: files, folders (with all below them) and globs.

    Raises:
        NotFoundError: one of them matches nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        files = {file for match in matching_paths(source) for file in (match.rglob("*") if match.is_dir() else [match])}
        kept = sorted(file for file in files if file.is_file() and not _hidden(file, path))
        if not kept:
            raise NotFoundError(f"'{source}' matches no file", hint="paths are relative to the current folder")
        found |= dict.fromkeys(kept)
    return list(found)


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change: whether a file was written to, at little cost."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def read_inputs(files: Sequence[Path]) -> tuple[InputFile, ...]:
    """The files with their hashes."""
    return tuple(InputFile(path=path.as_posix(), sha256=sha256(path), bytes=path.stat().st_size) for path in files)


def _hidden(file: Path, source: Path) -> bool:
    """As corpora are read: a name that begins with a dot counts only where the source spells it out."""
    return any(part.startswith(".") and part not in source.parts for part in file.parts)
