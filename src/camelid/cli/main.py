"""The `camelid` command: finds the verb, runs it, and turns errors into one clear message."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from camelid.base.errors import CamelidError
from camelid.cli import VERBS


class _VerbGroup(TyperGroup):
    """Looks verbs up in the registry, so that only the called one is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return VERBS.names()

    def get_command(self, ctx: Any, name: str) -> Any:
        app = VERBS.load(name)
        assert isinstance(app, typer.Typer)
        command = typer.main.get_command(app)
        command.name = name
        return command


app = typer.Typer(
    cls=_VerbGroup,
    name="camelid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from camelid import __version__

        print(f"camelid {__version__}")
        raise typer.Exit


@app.callback()
def camelid(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """The open Llama system: train, adapt, quantise, serve and talk to Llama-family models."""


def main() -> None:
    """Run the command line; a CamelidError becomes a message, a hint and exit code 2."""
    # Threads that sleep when they wait: beside other busy programs several times faster (docs/decisions/0003).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # What the locale cannot read or show becomes a replacement character, not a traceback.
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except CamelidError as error:
        print_error(error)
        sys.exit(error.exit_code)


def print_error(error: CamelidError) -> None:
    """Write what went wrong, where, and the hint, to stderr."""
    where = f" ({error.where})" if error.where else ""
    print(f"error: {error.what}{where}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)
