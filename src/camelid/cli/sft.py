"""`camelid sft`: fine-tune a model on conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Fine-tune a model on conversations, so that it answers.")


@app.command()
def sft(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; recipes/sft.toml is an example.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run folder; default: runs/RECIPE.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set a.b=value.")] = None,
) -> None:
    """Train, or take up a run that was stopped. Ctrl-C finishes the step, saves and stops."""
    from camelid.base.recipe import load_recipe
    from camelid.posttrain.sft import SftRecipe
    from camelid.posttrain.sft import sft as train

    result = train(load_recipe(SftRecipe, recipe, overrides or []), output or Path("runs") / recipe.stem)
    how = "finished" if result.finished else "stopped; the same command goes on"
    print(f"{how} at step {result.step}: {result.checkpoint / 'model'}")
