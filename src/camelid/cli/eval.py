"""`camelid eval`: measure a model on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Measure a model: bits per byte of held-out text, questions, benchmarks.")


@app.command("eval")
def evaluate(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; recipes/evaluate.toml is an example.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder for the results; default: runs/RECIPE.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set model=NAME.")] = None,
) -> None:
    """Measure a model on the tasks of a recipe; results that are there already are not measured again."""
    from camelid.base.recipe import load_recipe
    from camelid.evaluate.harness import EvaluateRecipe
    from camelid.evaluate.harness import evaluate as measure

    folder = output or Path("runs") / recipe.stem
    report = measure(load_recipe(EvaluateRecipe, recipe, overrides or []), folder)
    print(report.text())
    print(f"written to {folder / 'report.html'}")
