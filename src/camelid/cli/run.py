"""`camelid run`: a whole pipeline from one recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Run a pipeline: many stages from one recipe, each with a cached result.")

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the signal's number."""


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A TOML file with a [stages.NAME] table for each stage.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what each stage will take.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; default: the recipe's output, or runs/RECIPE.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set stages.pretrain.training.steps=50.")
    ] = None,
) -> None:
    """Run the stages that are not done yet. Ctrl-C saves and stops; the same command goes on."""
    from camelid.base.recipe import load_recipe
    from camelid.pipeline.recipe import PipelineRecipe

    settings = load_recipe(PipelineRecipe, recipe, overrides or [])
    folder = output or settings.output or Path("runs") / recipe.stem
    if dry_run:
        from camelid.pipeline.dry_run import dry_run as estimate

        print(estimate(settings, folder).text())
        return

    from camelid.pipeline.run import run_pipeline

    result = run_pipeline(settings, folder)
    if result.stopped_in is not None:
        print(f"stopped before '{result.stopped_in}' was done; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(STOPPED)
    print(f"report: {result.report}")
    if result.model is not None:
        print(f"talk to it: camelid chat {result.model}")
