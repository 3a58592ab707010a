"""What a stage's result depends on, as one hash: its kind and settings, the files it reads, the stages it builds on.

Keys of all stages follow from the recipe and the files alone, so that before anything runs it is known what has to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import FormatError, NotFoundError
from camelid.checkpoint.catalogue import resolve
from camelid.pipeline.inputs import input_files, read_inputs, stamp
from camelid.pipeline.record import RECORD, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from camelid.base.recipe import Recipe
    from camelid.pipeline.inputs import InputFile
    from camelid.pipeline.recipe import Stage
    from camelid.pipeline.record import StageRecord

FORMAT: Final = 1
"""Counted up when keys come to mean something else."""
KEY_DIGITS: Final = 8
"""Of a key in a folder's name."""


@dataclass(frozen=True)
class KeyedStage:
    """A stage, the hash of all it depends on, and where its work lies."""

    stage: Stage
    key: str
    after: Mapping[str, str]
    """The stages that it refers to, and their keys."""
    inputs: tuple[InputFile, ...]
    """The files that it reads from outside the pipeline."""
    stamps: Mapping[Path, tuple[int, int]]
    """The same files as they were just before they were hashed."""
    folder: Path
    record: StageRecord | None
    """None: it is still to be done."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def result(self) -> Path:
        """Where the result lies; the stage is done."""
        assert self.record is not None, f"{self.name} is not done"
        return self.folder / self.record.result

    def as_found(self) -> KeyedStage:
        """The same, with the record that now lies in the folder.

        Raises:
            FormatError: it is damaged.
        """
        return replace(self, record=_record(self.folder, self.key))

    def check_inputs(self) -> None:
        """Make sure that the files are still those that the key was made of.

        Raises:
            FormatError: one has changed.
        """
        for file, before in self.stamps.items():
            if not file.is_file() or stamp(file) != before:
                raise FormatError(
                    f"this file changed while the stage '{self.name}' was to read it",
                    where=file,
                    hint="the same command takes up what the file is now",
                )


def keyed(stages: Sequence[Stage], output: Path) -> list[KeyedStage]:
    """The stages with their keys, and what is already done of them.

    Raises:
        NotFoundError: a stage's source matches no file.
        FormatError: a stage's record is damaged.
    """
    done: dict[str, KeyedStage] = {}
    for stage in stages:
        keys = {name: one.key for name, one in done.items()}
        recipe = stage.recipe(keys.__getitem__)
        files = _files(stage, recipe, list(keys.values()))
        stamps = {file: stamp(file) for file in files}
        inputs = read_inputs(files)
        settings = recipe.model_dump(mode="json")
        for name in (*stage.kind.outputs, *stage.kind.free_to_change):
            _take_out(settings, name)
        content = [FORMAT, stage.kind_name, stage.kind.version, settings, [(f.path, f.sha256) for f in inputs]]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        folder = output / f"{stage.name}-{key[:KEY_DIGITS]}"
        after = {name: keys[name] for name in stage.names}
        done[stage.name] = KeyedStage(stage, key, after, inputs, stamps, folder, _record(folder, key))
    return list(done.values())


def _record(folder: Path, key: str) -> StageRecord | None:
    record = read_record(folder)
    if record is not None and record.key != key:
        hint = "two keys begin alike, or the folder was renamed: move it away"
        raise FormatError(f"this is the work of another stage: key {record.key}", where=folder / RECORD, hint=hint)
    return record if record is not None and (folder / record.result).exists() else None


def _files(stage: Stage, recipe: Recipe, keys: Sequence[str]) -> list[Path]:
    """The files that the stage reads from outside the pipeline: what earlier stages make, their keys speak for."""

    def outside(names: Sequence[str]) -> list[str]:
        return [name for name in names if not any(key in name for key in keys)]

    kind = stage.kind
    try:
        models = [str(resolve(name)) for name in outside(kind.models(recipe))]
        return input_files([*outside(kind.sources(recipe)), *models])
    except NotFoundError as error:
        where = f"stages.{stage.name}" + (f", {error.where}" if error.where else "")
        raise NotFoundError(error.what, where=where, hint=error.hint) from error


def _take_out(settings: dict[str, Any], key: str) -> None:
    first, _, rest = key.partition(".")
    if rest and isinstance(inner := settings.get(first), dict):
        _take_out(inner, rest)
    elif not rest:
        settings.pop(first, None)
