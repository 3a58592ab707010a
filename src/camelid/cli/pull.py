"""`camelid pull`: get a model."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Get a model: from the catalogue, or a Hugging Face id such as org/name.")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A catalogue name, or a Hugging Face id such as org/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face model.")] = None,
) -> None:
    """Get a model. An interrupted download goes on where it stopped; hashes are checked."""
    from camelid.checkpoint.pull import pull as fetch

    print(fetch(name, revision=revision))
