"""Pipelines: many stages from one recipe, each with a cached result.

recipe = load_recipe(PipelineRecipe, Path("recipes/ladder.toml"))
run_pipeline(recipe, Path("runs/ladder"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.pipeline.kind import STAGES, StageKind
    from camelid.pipeline.recipe import PipelineRecipe
    from camelid.pipeline.run import PipelineResult, run_pipeline

__all__ = ["STAGES", "PipelineRecipe", "PipelineResult", "StageKind", "run_pipeline"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "STAGES": "camelid.pipeline.kind",
        "PipelineRecipe": "camelid.pipeline.recipe",
        "PipelineResult": "camelid.pipeline.run",
        "StageKind": "camelid.pipeline.kind",
        "run_pipeline": "camelid.pipeline.run",
    },
)
