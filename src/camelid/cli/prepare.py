"""`camelid prepare`: clean a corpus and write its token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Clean a corpus and write the token shards that training reads.")


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; recipes/prepare.toml is an example.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set a.b=value.")] = None,
) -> None:
    """Clean a corpus and write its token shards; a second call goes on where the first was stopped."""
    from camelid.base.recipe import load_recipe
    from camelid.data.prepare import PrepareRecipe, prepare_shards

    settings = load_recipe(PrepareRecipe, recipe, overrides or [])
    report, manifest = prepare_shards(settings)
    print(report.text())
    for split in ("train", "validation"):
        shards = manifest.shards(split)
        num_tokens, num_documents = (sum(getattr(s, n) for s in shards) for n in ("num_tokens", "num_documents"))
        print(f"{split}: {num_tokens:,} tokens of {num_documents:,} documents in {len(shards)} shards")
    print(f"written to {settings.output}")
