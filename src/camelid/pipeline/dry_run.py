"""What a pipeline would take: tokens, parameters, arithmetic, memory and time of each stage. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from camelid.base.errors import CamelidError
from camelid.base.files import format_bytes
from camelid.pipeline.estimate import Estimate, Forecast
from camelid.pipeline.keys import keyed

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.pipeline.recipe import PipelineRecipe

HEADS = ("stage", "kind", "tokens", "parameters", "FLOPs", "memory", "time", "")


@dataclass(frozen=True)
class StageForecast:
    """One stage of a dry run."""

    name: str
    kind: str
    estimate: Estimate | None
    """None: its result is there already."""


@dataclass(frozen=True)
class DryRun:
    """What is to be done, and what it will take."""

    stages: tuple[StageForecast, ...]

    @property
    def seconds(self) -> float:
        """Of all stages whose time is known."""
        return sum(stage.estimate.seconds or 0.0 for stage in self.stages if stage.estimate is not None)

    def text(self) -> str:
        """A table and the time in all."""
        from camelid.train.progress import format_seconds

        rows = [HEADS, *(_row(stage) for stage in self.stages)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
        left = (0, 1, len(HEADS) - 1)
        lines = [
            "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        unknown = [stage.name for stage in self.stages if stage.estimate is not None and stage.estimate.seconds is None]
        without = f", without {', '.join(unknown)}" if unknown else ""
        return "\n".join([*lines, f"in all about {format_seconds(self.seconds)}{without}"])


def dry_run(recipe: PipelineRecipe, output: Path) -> DryRun:
    """Estimate every stage that would run.

    Rates are measured on the beginning of the inputs and by running one block of each model for a moment.

    Raises:
        NotFoundError: a file that a stage reads does not exist.
        ConfigError: a device is not there.
    """
    stages = keyed(recipe.parsed(), output)
    results = {stage.name: stage.key if stage.record is None else str(stage.result) for stage in stages}
    expected: dict[str, Estimate] = {}
    found = []
    for stage in stages:
        estimate = None
        if stage.record is None:
            settings = stage.stage.recipe(results.__getitem__, stage.folder)
            try:
                estimate = stage.stage.kind.estimate(settings, Forecast(expected))
            except CamelidError as error:
                where = f"stages.{stage.name}" + (f", {error.where}" if error.where else "")
                raise type(error)(error.what, where=where, hint=error.hint) from error
            expected[stage.key] = estimate
        found.append(StageForecast(stage.name, stage.stage.kind_name, estimate))
    return DryRun(tuple(found))


def _row(stage: StageForecast) -> tuple[str, ...]:
    from camelid.train.progress import format_seconds

    found = stage.estimate
    if found is None:
        return (stage.name, stage.kind, "", "", "", "", "", "cached")
    return (
        stage.name,
        stage.kind,
        _count(found.tokens),
        _count(found.parameters),
        "" if found.flops is None else f"{found.flops:.2g}",
        "" if found.memory is None else format_bytes(found.memory),
        "?" if found.seconds is None else format_seconds(found.seconds),
        found.note,
    )


def _count(number: float | None) -> str:
    return "" if number is None else f"{round(number):,}"
