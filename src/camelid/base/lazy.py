"""Packages whose names are imported when they are first used.

__getattr__, __dir__ = lazy_exports(__name__, {"load": "camelid.llm"})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_exports(
    package: str, homes: Mapping[str, str], *present: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    Args:
        package: the package's name.
        homes: exported name → the module that has it.
        present: exported names that the package defines itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get, lambda: sorted((*homes, *present))
