"""Post-training: from a base model to one that answers.

from camelid.posttrain.sft import SftRecipe, sft

recipe = load_recipe(SftRecipe, Path("recipes/sft.toml"))
sft(recipe, Path("runs/sft"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.registry import Registry

if TYPE_CHECKING:
    from camelid.posttrain.method import Method

METHODS: Registry[Method] = Registry("post-training method", "camelid.methods", {"sft": "camelid.posttrain.sft:METHOD"})
