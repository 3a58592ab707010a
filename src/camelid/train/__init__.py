"""Training: one trainer for pretraining and everything after it, resumable to the same bits.

from camelid.train.pretrain import PretrainRecipe, pretrain

recipe = load_recipe(PretrainRecipe, Path("recipes/small.toml"))
pretrain(recipe, Path("runs/small"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.base.errors import TrainingError
    from camelid.train.pretrain import PretrainRecipe
    from camelid.train.settings import TrainSettings
    from camelid.train.trainer import Trainer

__all__ = ["PretrainRecipe", "TrainSettings", "Trainer", "TrainingError"]
# The function `pretrain` is not among them: the package has a module of that name.

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "PretrainRecipe": "camelid.train.pretrain",
        "TrainSettings": "camelid.train.settings",
        "Trainer": "camelid.train.trainer",
        "TrainingError": "camelid.base.errors",
    },
)
