"""`camelid pretrain`: train a model on token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Train a model on token shards, from scratch or from a checkpoint.")


@app.command()
def pretrain(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; recipes/pretrain.toml is an example.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run folder; default: runs/RECIPE.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set a.b=value.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what the run will take.")] = False,
) -> None:
    """Train, or take up a run that was stopped. Ctrl-C finishes the step, saves and stops."""
    from camelid.base.recipe import load_recipe
    from camelid.train.pretrain import PretrainRecipe
    from camelid.train.pretrain import pretrain as train

    settings = load_recipe(PretrainRecipe, recipe, overrides or [])
    if dry_run:
        from camelid.train.plan import plan_pretraining

        print(plan_pretraining(settings).text())
        return
    result = train(settings, output or Path("runs") / recipe.stem)
    how = "finished" if result.finished else "stopped; the same command goes on"
    print(f"{how} at step {result.step}: {result.checkpoint / 'model'}")
