"""What a stage of a pipeline can be: a verb's recipe, what of it the pipeline supplies, and how it is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from camelid.base.recipe import Recipe
from camelid.base.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from camelid.pipeline.estimate import Estimate, Forecast

R = TypeVar("R", bound=Recipe)


class StageKind(ABC, Generic[R]):
    """One kind of stage.

    A stage can be killed at any moment: run again in the same folder, it ends with the same result.
    """

    schema: type[R]
    """The recipe's class."""
    outputs: ClassVar[Mapping[str, str]] = {}
    """Dotted setting → the folder below the stage's own that the pipeline sets it to."""
    free_to_change: ClassVar[frozenset[str]] = frozenset()
    """Dotted settings that leave the result alone."""
    version: ClassVar[int] = 1
    """Counted up when the same settings come to another result."""
    makes_model: ClassVar[bool] = False
    """Whether the result is a model folder."""

    @abstractmethod
    def sources(self, recipe: R) -> Sequence[str]:
        """Files, folders and globs whose contents the result depends on, as the recipe names them."""

    def models(self, recipe: R) -> Sequence[str]:
        """Models that the result depends on: paths, catalogue names, pulled hub ids."""
        return ()

    @abstractmethod
    def run(self, recipe: R, folder: Path) -> Path | None:
        """Do the work, or finish what was begun in the folder; the result, or None if a signal stopped it."""

    @abstractmethod
    def estimate(self, recipe: R, forecast: Forecast) -> Estimate:
        """What the work will take."""

    def check(self, recipe: R) -> None:
        """Refuse what the schema cannot tell to be impossible, before anything runs."""


STAGES: Registry[type[StageKind[Any]]] = Registry(
    "kind of stage",
    "camelid.stages",
    {
        "tokenizer": "camelid.pipeline.data_stages:TokenizerStage",
        "prepare": "camelid.pipeline.data_stages:PrepareStage",
        "pretrain": "camelid.pipeline.training_stages:PretrainStage",
        "sft": "camelid.pipeline.training_stages:SftStage",
        "evaluate": "camelid.pipeline.evaluate_stage:EvaluateStage",
    },
)
"""What `run = "…"` names."""
