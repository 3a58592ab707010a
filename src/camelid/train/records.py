"""Files of one JSON record a line, each of a step, that a resumed run rewinds to where it goes on from."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, fields
from typing import IO, TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from camelid.base.errors import FormatError
from camelid.base.files import disk_error, write_text

if TYPE_CHECKING:
    from dataclasses import Field
    from pathlib import Path


class StepRecord(Protocol):
    """A dataclass that tells of one step."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def step(self) -> int:
        """Updates made, this one included."""


R = TypeVar("R", bound=StepRecord)


class RecordFile(Generic[R]):
    """Appends records to a file.

    Args:
        path: the file; created if missing.
        kind: the records' class.
        after_step: the step that the run goes on from: later lines, and one cut short by a kill, are dropped.

    Raises:
        FormatError: a line is not what this version writes.
        ResourceError: the disk is full.
    """

    def __init__(self, path: Path, kind: type[R], after_step: int = 0) -> None:
        self._path = path
        write_text(path, "".join(_line(record) for record in read_records(path, kind) if record.step <= after_step))
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, record: R) -> None:
        """Write one line.

        Raises:
            ResourceError: the disk is full.
        """
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self._path) from error

    def sync(self) -> None:
        """Make sure that all lines are on disk, as before a checkpoint that presumes them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path, kind: type[R]) -> list[R]:
    """The records in a file; none if there is no file. A last line that was cut short is left out.

    Raises:
        FormatError: another line is not what this version or an earlier one writes.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    required = {field.name for field in fields(kind) if field.default is MISSING}
    known = {field.name for field in fields(kind)}
    records = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut short
        try:
            values = json.loads(line)
            given = {name: values[name] for name in known if name in required or name in values}
            records.append(kind(**given))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a record of a run: {error!r}", where=f"{path}, line {number}") from error
    return records


def _line(record: StepRecord) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"
