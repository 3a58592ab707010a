"""A shape that a model was released in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from camelid.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A shape that a model was released in."""

    name: str
    config: ModelConfig
    family: str
    release: str
    """Year and month."""
    licence: str
    """Of the released weights; a shape is free."""
    hub_id: str | None = None
    """Where the weights were published; None: not under one name that anybody can open."""
    pickled: bool = False
    """They were published as torch's pickles only, which are not fetched from the hub."""


def family(
    name: str,
    release: str,
    licence: str,
    members: Mapping[str, tuple[ModelConfig, str | None]],
    *,
    pickled: bool = False,
) -> dict[str, Preset]:
    """The presets of one release, by name: what they share, and each one's config and hub id."""
    return {
        member: Preset(
            name=member,
            config=config,
            family=name,
            release=release,
            licence=licence,
            hub_id=hub_id,
            pickled=pickled,
        )
        for member, (config, hub_id) in members.items()
    }
