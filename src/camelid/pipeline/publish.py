"""The model of a pipeline under a name that does not change, so that `camelid chat runs/ladder/model` always works."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from camelid.base.files import atomic_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from camelid.pipeline.keys import KeyedStage

MODEL: Final = "model"
"""The folder inside the pipeline's."""


def publish_model(stages: Sequence[KeyedStage], output: Path) -> Path | None:
    """Fill `model/` with the last training stage's model, once that stage is done; the folder.

    Its files are hard links to the checkpoint's: they take no space, and stay when the checkpoint goes. The folder is
    replaced as a whole, and left alone if it holds that model already. One process at a time calls this.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    path = output / MODEL
    for abandoned in output.glob(f".{MODEL}.*"):  # by a kill in the middle of this
        shutil.rmtree(abandoned, ignore_errors=True)
    models = [stage for stage in stages if stage.stage.kind.makes_model]
    if not models or models[-1].record is None:
        return None
    files = _files(models[-1].result)
    standing = _files(path)
    if files.keys() == standing.keys() and all(_same(file, standing[name]) for name, file in files.items()):
        return path
    with atomic_folder(path) as new:
        for name, file in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, new / name)
            except OSError:  # a file system without hard links
                shutil.copy2(file, new / name)
    return path


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _same(one: Path, other: Path) -> bool:
    """Whether they are one file, or a copy that `publish_model` made."""
    if one.samefile(other):
        return True
    a, b = one.stat(), other.stat()
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
