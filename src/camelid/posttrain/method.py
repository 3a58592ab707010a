"""What a post-training method is: a recipe and what is done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from camelid.base.recipe import Recipe
    from camelid.train.trainer import TrainResult


@dataclass(frozen=True)
class Method:
    """One entry of `camelid.posttrain.METHODS`."""

    recipe: type[Recipe]
    """The class of its recipes."""
    train: Callable[[Any, Path], TrainResult]
    """Trains by a recipe of this class in a run folder."""
