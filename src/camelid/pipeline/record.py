"""`stage.json`: that a stage is done. It is written last, so where it stands everything else in the folder does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from camelid.base.errors import FormatError
from camelid.base.files import write_text
from camelid.pipeline.inputs import InputFile  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from pathlib import Path

RECORD: Final = "stage.json"


class StageRecord(BaseModel):
    """What is known of a finished stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    camelid: str
    """The version that did the work."""
    name: str
    kind: str
    key: str
    """Hash of all that the result depends on."""
    after: dict[str, str]
    """The stages that it refers to, and their keys."""
    inputs: tuple[InputFile, ...]
    """What it read from outside the pipeline."""
    result: str
    """The result's path, relative to the stage's folder, so that the whole can be moved."""
    seconds: float
    """Wall time of the attempt that finished it."""

    def write(self, folder: Path) -> None:
        """Write the record into the stage's folder, atomically."""
        write_text(folder / RECORD, self.model_dump_json(indent=2) + "\n")


def read_record(folder: Path) -> StageRecord | None:
    """The record in a stage's folder; None if the stage is not done.

    Raises:
        FormatError: the file is damaged or of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return StageRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        hint = "remove the folder, and the stage runs again"
        raise FormatError(f"this is no record of a stage: {key}: {first['msg']}", where=path, hint=hint) from error
