"""`camelid data`: look at what a model is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from camelid.data.batch import BatchSource
    from camelid.tokenizer import Tokenizer

app = typer.Typer(add_completion=False, help="Look at what a model is trained on.", no_args_is_help=True)


class _Sizes(NamedTuple):
    sequence_length: int
    batch_size: int
    seed: int


@app.callback()
def data() -> None:
    """Look at what a model is trained on."""


@app.command()
def show(
    source: Annotated[
        Path, typer.Argument(help="A folder of token shards, as `camelid prepare` writes them, or conversations.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer and chat template conversations are shown in.")
    ] = None,
    chat_format: Annotated[
        str | None, typer.Option(help="A chat format in place of the model's own, such as llama3.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Which batch, from 0.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences of a batch.", min=1)] = 2,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Of the order.", min=0)] = 0,
) -> None:
    """Print a batch in colour: green where the loss is taken, grey where a token is only read."""
    from camelid.base.errors import RecipeError
    from camelid.data.show import show as in_colour

    sizes = _Sizes(sequence_length, batch_size, seed)
    if source.is_dir():
        tokenizer, batches = _shards(source, sizes)
    elif model is not None:
        tokenizer, batches = _conversations(source, model, chat_format, sizes)
    else:
        raise RecipeError(
            "conversations have no tokens until a model's tokenizer makes them",
            where=source,
            hint="name one: --model smollm2-135m-instruct",
        )
    print(in_colour(batches.batch(batch), tokenizer))


def _shards(folder: Path, sizes: _Sizes) -> tuple[Tokenizer, BatchSource]:
    from camelid.data.loader import PretrainBatches
    from camelid.data.prepare import TOKENIZER
    from camelid.data.shards import TokenShards
    from camelid.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / TOKENIZER)
    return tokenizer, PretrainBatches(
        TokenShards(folder, tokenizer),
        sequence_length=sizes.sequence_length,
        batch_size=sizes.batch_size,
        seed=sizes.seed,
    )


def _conversations(file: Path, model: str, chat_format: str | None, sizes: _Sizes) -> tuple[Tokenizer, BatchSource]:
    import sys
    from contextlib import closing

    from camelid.checkpoint import open_checkpoint
    from camelid.checkpoint.catalogue import resolve
    from camelid.data.conversation_batches import ConversationBatches
    from camelid.data.conversations import read_conversations
    from camelid.tokenizer.chat import chat_format_for

    with closing(open_checkpoint(resolve(model))) as checkpoint:
        tokenizer = checkpoint.load_tokenizer()
        chat = chat_format_for(tokenizer, template=checkpoint.chat_template, name=chat_format)
    batches = ConversationBatches(
        read_conversations([file]),
        chat,
        sequence_length=sizes.sequence_length,
        batch_size=sizes.batch_size,
        seed=sizes.seed,
    )
    print(batches.report, file=sys.stderr)
    return tokenizer, batches
