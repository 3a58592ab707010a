"""Writes the command-line reference from the commands: `python -m camelid.cli.reference docs/reference/cli.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from camelid.base.files import write_text
from camelid.cli.main import app


def reference() -> str:
    """The whole command line as Markdown."""
    root = typer.main.get_command(app)
    return "# Command line\n\n" + "\n".join(_describe(root, "camelid")).rstrip() + "\n"


def _describe(command: Any, path: str) -> list[str]:
    lines = [f"## `{path}`", "", (command.help or "").strip(), "", "```", _usage(command, path), "```", ""]
    groups: dict[str | None, list[str]] = {}
    for parameter in command.params:
        if parameter.name != "help":
            groups.setdefault(getattr(parameter, "rich_help_panel", None), []).append(_row(parameter))
    for title, rows in groups.items():
        lines += [f"| {title or 'parameter'} | default | meaning |", "|---|---|---|", *rows, ""]
    context = command.make_context(path, [], resilient_parsing=True)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else []:
        lines += _describe(command.get_command(context, name), f"{path} {name}")
    return lines


def _usage(command: Any, path: str) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    return " ".join([path, *command.collect_usage_pieces(context)])


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if is_argument else ", ".join(f"`{option}`" for option in parameter.opts)
    default = "" if parameter.default in (None, False, ...) else f"`{parameter.default}`"
    return f"| {name} | {'required' if parameter.required else default} | {parameter.help or ''} |"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference())
