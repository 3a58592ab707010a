"""A kind of stage that copies text and notes that it was run, for the tests of caching and stopping."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pydantic import Field

from camelid.base.errors import TrainingError
from camelid.base.recipe import Recipe
from camelid.pipeline.estimate import Estimate, Forecast
from camelid.pipeline.kind import StageKind
from camelid.train.interrupt import catch_signals


class CopyRecipe(Recipe):
    texts: tuple[str, ...]
    """Files, joined into one."""
    output: Path
    suffix: str = ""
    verbose: int = Field(default=0, ge=0)
    """Leaves the result alone."""


class CopyStage(StageKind[CopyRecipe]):
    schema = CopyRecipe
    outputs = {"output": "copied"}
    free_to_change = frozenset({"verbose"})

    def sources(self, recipe: CopyRecipe) -> list[str]:
        return list(recipe.texts)

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        recipe.output.mkdir(parents=True, exist_ok=True)
        result = recipe.output / "text.txt"
        result.write_text("".join(Path(path).read_text() for path in recipe.texts) + recipe.suffix)
        return result

    def estimate(self, recipe: CopyRecipe, forecast: Forecast) -> Estimate:
        return Estimate(seconds=2.0, tokens=7.0, note="" if forecast.of(recipe.texts) is None else "after another")


class ModelStage(CopyStage):
    """Its result passes for a model folder."""

    makes_model = True

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        result = super().run(recipe, folder)
        assert result is not None
        return result.parent


class InterruptedModelStage(ModelStage):
    """Stops before its model is done."""

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        return None


class FailStage(CopyStage):
    """Fails after half of its work."""

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        super().run(recipe, folder)
        raise TrainingError("the stage broke down")


class InterruptedStage(CopyStage):
    """Gets a signal, stops politely and has not finished."""

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        with catch_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(5)
        return None


class LateSignalStage(CopyStage):
    """Gets a signal, and has finished by then."""

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        with catch_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(5)
        return super().run(recipe, folder)


class ImpatientStage(CopyStage):
    """Knows nothing of signals."""

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        raise KeyboardInterrupt


class MeddledStage(CopyStage):
    """Somebody edits its first file while it runs."""

    def run(self, recipe: CopyRecipe, folder: Path) -> Path | None:
        result = super().run(recipe, folder)
        Path(recipe.texts[0]).write_text("something else altogether")
        return result


TOYS = {
    "copy": "toy_stages:CopyStage",
    "model": "toy_stages:ModelStage",
    "interrupted_model": "toy_stages:InterruptedModelStage",
    "fail": "toy_stages:FailStage",
    "interrupted": "toy_stages:InterruptedStage",
    "late_signal": "toy_stages:LateSignalStage",
    "impatient": "toy_stages:ImpatientStage",
    "meddled": "toy_stages:MeddledStage",
}
