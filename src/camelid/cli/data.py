"""`camelid data`: look at what a model is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Look at what a model is trained on.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at what a model is trained on."""


@app.command()
def show(
    shards: Annotated[Path, typer.Argument(help="A folder of token shards, as `camelid prepare` writes them.")],
    batch: Annotated[int, typer.Option(help="Which batch, from 0.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences of a batch.", min=1)] = 2,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Of the order.", min=0)] = 0,
) -> None:
    """Print a batch in colour: green where the loss is taken, grey where a token is only read."""
    from camelid.data.loader import PretrainBatches
    from camelid.data.prepare import TOKENIZER
    from camelid.data.shards import TokenShards
    from camelid.data.show import show as in_colour
    from camelid.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(shards / TOKENIZER)
    batches = PretrainBatches(
        TokenShards(shards, tokenizer), sequence_length=sequence_length, batch_size=batch_size, seed=seed
    )
    print(in_colour(batches.batch(batch), tokenizer))
