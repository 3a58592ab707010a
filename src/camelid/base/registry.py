"""Registries: plain dicts from a name to `"module:attribute"`, imported when asked for, open to plug-ins.

A package adds to a registry with an entry point in the registry's group:

    [project.entry-points."camelid.architectures"]
    mamba = "my_package.mamba:Mamba"
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from camelid.base.errors import NotFoundError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, str], Generic[T]):
    """A dict from a name to where its implementation lives.

    Args:
        kind: what one entry is, for messages ("architecture").
        group: the entry-point group that plug-ins add to ("camelid.architectures").
        entries: the built-in names.
    """

    def __init__(self, kind: str, group: str, entries: dict[str, str]) -> None:
        super().__init__(entries)
        self.kind = kind
        self.group = group

    def names(self) -> list[str]:
        """Every name, built-in and plugged in, sorted."""
        return sorted({**_plugins(self.group), **self})

    def load(self, name: str) -> T:
        """The implementation behind a name.

        Raises:
            NotFoundError: no such name; the hint holds the nearest ones.
        """
        target = self.get(name) or _plugins(self.group).get(name)
        if target is None:
            raise NotFoundError(f"there is no {self.kind} named '{name}'", hint=did_you_mean(name, self.names()))
        module, _, attribute = target.partition(":")
        return cast("T", getattr(import_module(module), attribute))


@cache
def _plugins(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=group)}
