"""`{NAME}` inside a recipe's strings: the result of the stage of that name. `{{NAME}}` is the text `{NAME}` itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = r"[A-Za-z][A-Za-z0-9_-]*"
"""How a stage may be called: its folder is named after it."""
_REFERENCE = re.compile(rf"\{{(?P<text>\{{{NAME}\}})\}}|\{{(?P<name>{NAME})\}}")


def references(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, stage's name) of every reference in nested tables and lists."""
    if isinstance(settings, str):
        yield from ((key, match["name"]) for match in _REFERENCE.finditer(settings) if match["name"])
    elif isinstance(settings, dict):
        for name, value in settings.items():
            yield from references(value, f"{key}.{name}" if key else name)
    elif isinstance(settings, list):
        for number, value in enumerate(settings):
            yield from references(value, f"{key}.{number}")


def substituted(settings: Any, result: Callable[[str], str]) -> Any:
    """The settings with every reference replaced by what `result` says of the stage's name."""
    if isinstance(settings, str):
        return _REFERENCE.sub(lambda match: match["text"] or result(match["name"]), settings)
    if isinstance(settings, dict):
        return {name: substituted(value, result) for name, value in settings.items()}
    if isinstance(settings, list):
        return [substituted(value, result) for value in settings]
    return settings
