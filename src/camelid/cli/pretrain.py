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
) -> None:
    """Train, or take up a run that was stopped. Ctrl-C finishes the step, saves and stops."""
    from camelid.base.recipe import load_recipe
    from camelid.data.loader import PretrainBatches
    from camelid.data.prepare import TOKENIZER
    from camelid.data.shards import TokenShards
    from camelid.tokenizer import load_tokenizer
    from camelid.train.pretrain import PretrainRecipe
    from camelid.train.pretrain import pretrain as train

    settings = load_recipe(PretrainRecipe, recipe, overrides or [])
    tokenizer = load_tokenizer(settings.data.shards / TOKENIZER)
    batches = PretrainBatches(
        TokenShards(settings.data.shards, tokenizer),
        sequence_length=settings.data.sequence_length,
        batch_size=settings.data.batch_size,
        seed=settings.training.seed,
    )
    result = train(settings, batches, output or Path("runs") / recipe.stem, tokenizer=tokenizer)
    how = "finished" if result.finished else "stopped; the same command goes on"
    print(f"{how} at step {result.step}: {result.checkpoint / 'model'}")
