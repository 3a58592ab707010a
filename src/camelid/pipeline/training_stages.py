"""The stages that train; the result is the model folder of the last checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.pipeline.estimate import UNKNOWN_MODEL, Estimate, of_plan
from camelid.pipeline.kind import StageKind
from camelid.posttrain.sft import SftRecipe
from camelid.train.pretrain import PretrainRecipe
from camelid.train.settings import FREE_TO_CHANGE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from camelid.pipeline.estimate import Forecast
    from camelid.train.trainer import TrainResult

_FREE_TO_CHANGE = frozenset(f"training.{name}" for name in FREE_TO_CHANGE)


class PretrainStage(StageKind[PretrainRecipe]):
    """Trains on token shards."""

    schema = PretrainRecipe
    free_to_change = _FREE_TO_CHANGE
    makes_model = True

    def sources(self, recipe: PretrainRecipe) -> Sequence[str]:
        """The shards."""
        return [str(recipe.data.shards)]

    def models(self, recipe: PretrainRecipe) -> Sequence[str]:
        """The weights to start from."""
        return [] if recipe.model.checkpoint is None else [str(recipe.model.checkpoint)]

    def run(self, recipe: PretrainRecipe, folder: Path) -> Path | None:
        """Train, or take up what was stopped."""
        from camelid.train.pretrain import pretrain

        return _model_of(pretrain(recipe, folder))

    def check(self, recipe: PretrainRecipe) -> None:
        """The preset must be one, the shape possible, and its positions enough."""
        from camelid.train.pretrain import config_from_scratch
        from camelid.train.run_folder import check_positions

        if recipe.model.checkpoint is None:
            check_positions(recipe.data.sequence_length, config_from_scratch(recipe.model))

    def estimate(self, recipe: PretrainRecipe, forecast: Forecast) -> Estimate:
        """By the planner."""
        from camelid.train.plan import plan_pretraining
        from camelid.train.pretrain import config_from_scratch

        checkpoint = recipe.model.checkpoint
        config = config_from_scratch(recipe.model) if checkpoint is None else forecast.config(checkpoint)
        if config is None:
            return Estimate(note=UNKNOWN_MODEL)
        return of_plan(plan_pretraining(recipe, config=config), config)


class SftStage(StageKind[SftRecipe]):
    """Trains on conversations."""

    schema = SftRecipe
    free_to_change = _FREE_TO_CHANGE
    makes_model = True

    def sources(self, recipe: SftRecipe) -> Sequence[str]:
        """The conversations, those held out included."""
        return [source.files for source in (*recipe.data.sources, *recipe.data.validation)]

    def models(self, recipe: SftRecipe) -> Sequence[str]:
        """The weights to start from."""
        return [str(recipe.model)]

    def run(self, recipe: SftRecipe, folder: Path) -> Path | None:
        """Train, or take up what was stopped."""
        from camelid.posttrain.sft import sft

        return _model_of(sft(recipe, folder))

    def check(self, recipe: SftRecipe) -> None:
        """The chat format must be one."""
        from camelid.tokenizer.chat import CHAT_FORMATS

        if recipe.chat_format is not None:
            CHAT_FORMATS.load(recipe.chat_format)

    def estimate(self, recipe: SftRecipe, forecast: Forecast) -> Estimate:
        """By the planner."""
        from camelid.posttrain.plan import plan_sft

        expected = forecast.of(recipe.model)
        config = forecast.config(recipe.model)
        if config is None:
            return Estimate(note=UNKNOWN_MODEL)
        # Without a config the planner opens the model and counts with its tokenizer.
        return of_plan(plan_sft(recipe, config=config if expected else None), config)


def _model_of(result: TrainResult) -> Path | None:
    return result.checkpoint / "model" if result.finished else None
