"""The folder that cleaning fills: kept documents, one file for each source file, the index, and how far it got.

A source file is done when its transaction in `index.sqlite` is committed: the index's new keys and the file's report
become visible together, after its documents are on disk. A kill before that leaves the file to be done again.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING

from camelid.base.errors import CamelidError, FormatError, RecipeError, ResourceError
from camelid.base.files import atomic_file, disk_error, sha256
from camelid.data.compression import open_binary
from camelid.data.document import Document
from camelid.data.report import FileReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from camelid.data.sources import SourceFile

INDEX_CACHE_KIB = 8192
INDEX = "index.sqlite"


class CleanFolder:
    """A folder of kept documents in the making; `open_folder` makes one.

    Args:
        path: the folder.
        database: its `index.sqlite`, open.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self.database = database

    def num_done(self, fingerprint: str, files: Sequence[SourceFile]) -> int:
        """How many of the source files are done already; a folder where none is takes on the fingerprint.

        Raises:
            RecipeError: the folder was filled by another recipe or from other files.
        """
        hint = "name another output folder, or remove this one to start anew"
        done = self.reports()
        if not done:
            self.database.execute("DELETE FROM recipe")
            self.database.execute("INSERT INTO recipe VALUES (?)", (fingerprint,))
        elif self.database.execute("SELECT fingerprint FROM recipe").fetchone() != (fingerprint,):
            raise RecipeError("the folder holds what another cleaning recipe made", where=self.path, hint=hint)
        for number, report in enumerate(done):
            if number >= len(files) or report.path != str(files[number].path):
                raise RecipeError(
                    f"the folder was begun from other files: file {number + 1} was '{report.path}'",
                    where=self.path,
                    hint=hint,
                )
            if report.sha256 != sha256(files[number].path):
                raise RecipeError(f"'{report.path}' has changed since it was cleaned", where=self.path, hint=hint)
            if not self.part(number).is_file():
                raise FormatError("a file of kept documents is missing", where=self.part(number), hint=hint)
        return len(done)

    def part(self, number: int) -> Path:
        """Where the kept documents of a source file lie."""
        return self.path / "documents" / f"{number:06d}.jsonl.zst"

    @contextmanager
    def writing(self, number: int) -> Iterator[DocumentWriter]:
        """Write the kept documents of one source file inside a transaction that `finish` ends."""
        import zstandard

        self.database.execute("BEGIN IMMEDIATE")
        with (
            atomic_file(self.part(number)) as raw,
            zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file,
        ):
            yield DocumentWriter(file)

    def finish(self, number: int, report: FileReport) -> None:
        """The source file is done."""
        self.database.execute("INSERT INTO files VALUES (?, ?)", (number, report.model_dump_json()))
        self.database.execute("COMMIT")

    def reports(self) -> list[FileReport]:
        """The reports of the files done."""
        rows = self.database.execute("SELECT report FROM files ORDER BY number")
        return [FileReport.model_validate_json(report) for (report,) in rows]


class DocumentWriter:
    """Writes documents as JSON lines."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, document: Document) -> None:
        """Add one document."""
        row = {"text": document.text, "id": document.id, "source": document.source}
        self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


@contextmanager
def open_folder(path: Path) -> Iterator[CleanFolder]:
    """Open or make the folder, for one process at a time.

    Raises:
        ResourceError: another process is filling it, or the disk is full or not writable.
        FormatError: its index is damaged.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        with closing(sqlite3.connect(path / INDEX, isolation_level=None, timeout=1)) as database:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute(f"PRAGMA cache_size = -{INDEX_CACHE_KIB}")
            database.execute("BEGIN EXCLUSIVE")
            database.execute("CREATE TABLE IF NOT EXISTS recipe (fingerprint TEXT)")
            database.execute("CREATE TABLE IF NOT EXISTS files (number INTEGER PRIMARY KEY, report TEXT)")
            database.execute("COMMIT")
            for unfinished in (path / "documents").glob(".*.partial"):
                unfinished.unlink()  # left by a process that was killed; nobody else is writing here
            yield CleanFolder(path, database)
    except sqlite3.OperationalError as error:
        raise _operational(error, path) from error
    except sqlite3.DatabaseError as error:
        raise FormatError(
            f"the index of duplicates is damaged: {error}", where=path / INDEX, hint="remove the folder and start anew"
        ) from error


def kept_documents(path: Path) -> Iterator[Document]:
    """The documents that cleaning kept, in the order of the corpus.

    Raises:
        NotFoundError: no such folder of kept documents.
        FormatError: a file in it is damaged.
    """
    from camelid.data.sources import find_files

    for file in find_files([str(path / "documents")]):
        with open_binary(file.path, file.compression) as lines:
            for line in lines:
                row = json.loads(line)
                yield Document(row["text"], row["id"], row["source"])


def _operational(error: sqlite3.OperationalError, path: Path) -> CamelidError:
    if "locked" in str(error):
        return ResourceError("another process is cleaning into this folder", where=path, hint="wait until it has ended")
    return ResourceError(f"the index of duplicates cannot be written: {error}", where=path / INDEX)
