"""Run a pipeline: what is done stays, what has to be done is done in order, and a kill costs no finished stage.

    recipe = load_recipe(PipelineRecipe, Path("recipes/ladder.toml"))
    run_pipeline(recipe, Path("runs/ladder"))

Each stage has a folder `<output>/<name>-<first digits of its key>/`; a changed setting gives its stage and those that
build on it other keys, and so other folders beside the old ones.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from camelid.base.errors import CamelidError
from camelid.pipeline.keys import keyed
from camelid.pipeline.publish import publish_model
from camelid.pipeline.record import StageRecord
from camelid.pipeline.report import REPORT, tells_of, write_report
from camelid.pipeline.signals import signals_seen
from camelid.pipeline.view import view_of
from camelid.train.run_lock import RunLock

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.pipeline.keys import KeyedStage
    from camelid.pipeline.recipe import PipelineRecipe
    from camelid.pipeline.view import View


@dataclass(frozen=True)
class PipelineResult:
    """How a pipeline ended."""

    stages: tuple[KeyedStage, ...]
    """As far as they are done, with their records."""
    ran: frozenset[str]
    """The stages that were worked on now; the others were done before or are still to be done."""
    stopped_in: str | None
    """The first stage that is not done, after Ctrl-C or SIGTERM: the same call goes on there. None: all are."""
    model: Path | None
    """The folder with the last training stage's model, once that is done."""
    report: Path


def run_pipeline(recipe: PipelineRecipe, output: Path) -> PipelineResult:
    """Run the stages that are not done.

    Args:
        recipe: the pipeline.
        output: gets a folder for each stage, `model/` and `report.html`; `recipe.output` is not looked at.

    Raises:
        NotFoundError: a file that a stage reads does not exist; nothing has run.
        ResourceError: another process is at work in the folder.
        CamelidError: what a stage raises; the stages before it are done.
    """
    stages = keyed(recipe.parsed(), output)
    ran: set[str] = set()
    with closing(RunLock(output)), signals_seen() as interrupted, view_of([stage.name for stage in stages]) as view:
        for number, keyed_stage in enumerate(stages):
            stage = stages[number] = keyed_stage.as_found()  # as it is now that no other pipeline is at work
            if stage.record is not None:
                view.set(stage.name, "cached", str(stage.folder))
                continue
            if interrupted():  # the stage before it ended in spite of the signal: it stays done
                break
            ran.add(stage.name)
            stages[number] = _run(stage, {done.name: done for done in stages[:number]}, view)
            write_report(output, stages, frozenset(ran))
            if stages[number].record is None:
                break
        if not tells_of(output, stages):
            write_report(output, stages, frozenset(ran))
        return PipelineResult(
            stages=tuple(stages),
            ran=frozenset(ran),
            stopped_in=next((stage.name for stage in stages if stage.record is None), None),
            model=publish_model(stages, output),
            report=output / REPORT,
        )


def _run(stage: KeyedStage, done: dict[str, KeyedStage], view: View) -> KeyedStage:
    """The stage, with its record if it was finished and without if a signal stopped it."""
    from camelid import __version__
    from camelid.train.progress import format_seconds

    view.set(stage.name, "running", str(stage.folder))
    started = time.monotonic()
    try:
        stage.check_inputs()
        result = stage.stage.kind.run(
            stage.stage.recipe(lambda name: str(done[name].result), stage.folder), stage.folder
        )
        stage.check_inputs()
    except KeyboardInterrupt:
        result = None
    except CamelidError:
        view.set(stage.name, "failed", str(stage.folder))
        raise
    seconds = time.monotonic() - started
    if result is None:
        view.set(stage.name, "stopped", str(stage.folder))
        return stage
    StageRecord(
        camelid=__version__,
        name=stage.name,
        kind=stage.stage.kind_name,
        key=stage.key,
        after=dict(stage.after),
        inputs=stage.inputs,
        result=result.relative_to(stage.folder).as_posix(),
        seconds=seconds,
    ).write(stage.folder)
    view.set(stage.name, "done", format_seconds(seconds))
    return stage.as_found()
