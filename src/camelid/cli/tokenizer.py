"""`camelid tokenizer`: train a vocabulary, look at how a text is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Train a tokenizer, or see how one cuts a text.", no_args_is_help=True)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; recipes/tokenizer.toml is an example.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: --set vocab_size=8192.")
    ] = None,
) -> None:
    """Train a byte-level BPE with Llama 3's split pattern and special tokens."""
    from camelid.base.recipe import load_recipe
    from camelid.data.train_tokenizer import TokenizerRecipe, train_from_recipe

    print(train_from_recipe(load_recipe(TokenizerRecipe, recipe, overrides or [])))


@app.command()
def encode(
    source: Annotated[str, typer.Argument(help="A catalogue name, a tokenizer or a model of any format.")],
    text: Annotated[str, typer.Argument(help="The text to cut.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print only the ids, as a JSON list.")] = False,
    allow_special: Annotated[bool, typer.Option(help="Read control tokens spelt out in the text as such.")] = False,
) -> None:
    """Show the ids of a text and the bytes that each stands for."""
    from camelid.checkpoint.catalogue import resolve
    from camelid.checkpoint.vocabulary import tokenizer_of

    tokenizer = tokenizer_of(resolve(source))
    ids = tokenizer.encode(text, allow_special=allow_special)
    if as_json:
        print(json.dumps(ids))
        return
    for token_id in ids:
        piece = tokenizer.token_bytes(token_id)
        print(f"{token_id:>8}  {piece.decode('utf-8', errors='backslashreplace')!r}")


@app.command()
def decode(
    source: Annotated[str, typer.Argument(help="A catalogue name, a tokenizer or a model of any format.")],
    ids: Annotated[list[int], typer.Argument(help="Token ids.")],
) -> None:
    """Show the text of token ids."""
    from camelid.checkpoint.catalogue import resolve
    from camelid.checkpoint.vocabulary import tokenizer_of

    print(tokenizer_of(resolve(source)).decode(ids))
