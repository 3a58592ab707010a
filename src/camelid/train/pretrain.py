"""Pretraining: from a recipe and batches to a model folder, from scratch or from any checkpoint.

recipe = load_recipe(PretrainRecipe, Path("recipes/small.toml"))
pretrain(recipe, batches, Path("runs/small"))
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from camelid.base.errors import NotFoundError, RecipeError, did_you_mean
from camelid.base.files import write_text
from camelid.base.recipe import Recipe
from camelid.base.runtime import pick_device
from camelid.model.llama_config import LlamaConfig
from camelid.model.presets import PRESETS
from camelid.model.rope import RopeParameters
from camelid.train.settings import Count, TrainSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from camelid.data.batch import BatchSource
    from camelid.model.base import LanguageModel
    from camelid.tokenizer import Tokenizer
    from camelid.train.trainer import TrainResult

RECIPE = "recipe.toml"
"""The recipe as it was validated, every default spelt out."""


class ModelShape(Recipe):
    """The shape of a Llama that is trained from scratch; names are Hugging Face's."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    """Left out: as many as there are query heads."""
    max_position_embeddings: Count = 2048
    rope_theta: float = Field(default=10_000.0, gt=1)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    tie_word_embeddings: bool = True
    initializer_range: float = Field(default=0.02, gt=0)

    def config(self) -> LlamaConfig:
        """The model's config.

        Raises:
            ConfigError: sizes that do not fit each other.
        """
        values = self.model_dump(exclude={"rope_theta"}, exclude_none=True)
        return LlamaConfig(**values, rope_parameters=RopeParameters(rope_theta=self.rope_theta))


class ModelSettings(Recipe):
    """What is trained: exactly one of a preset's shape, a shape, or the weights of a checkpoint."""

    preset: str | None = None
    """A name of `camelid.model.presets.PRESETS`."""
    shape: ModelShape | None = None
    checkpoint: Path | None = None
    """A folder or file of any format that camelid opens; its weights are trained on."""
    vocab_size: Count | None = None
    """In place of the preset's own: the size of the tokenizer's vocabulary."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(choice is not None for choice in (self.preset, self.shape, self.checkpoint)) != 1:
            raise ValueError("name exactly one of preset, shape and checkpoint")
        if self.vocab_size is not None and self.preset is None:
            raise ValueError("vocab_size goes with preset only")
        return self


class DataSettings(Recipe):
    """Which batches: what a batch source is built from."""

    shards: Path
    """The folder of prepared token shards."""
    sequence_length: Count = 1024
    batch_size: Count = 8
    """Sequences of one batch; an update takes `training.accumulation` batches."""


class PretrainRecipe(Recipe):
    """Everything that a pretraining run depends on."""

    model: ModelSettings
    data: DataSettings
    training: TrainSettings = TrainSettings()
    device: str = "auto"


def pretrain(
    recipe: PretrainRecipe,
    batches: BatchSource,
    run_folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
) -> TrainResult:
    """Train, or take up a run that was stopped, and write its report.

    Args:
        recipe: what to train and how.
        batches: the batches that `recipe.data` describes.
        run_folder: gets the recipe, what `Trainer` writes, and `report.html`.
        tokenizer: written beside the weights.

    Raises:
        RecipeError: the run folder belongs to another recipe, or the recipe is impossible.
        TrainingError: training cannot go on.
    """
    from camelid.train.report import write_report
    from camelid.train.trainer import Trainer

    model = build_model(recipe, pick_device(recipe.device))
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise RecipeError(
            f"the tokenizer has {tokenizer.vocab_size} entries and the model only {model.config.vocab_size}",
            where="model.vocab_size",
        )
    trainer = Trainer(
        model, batches, recipe.training, run_folder, tokenizer=tokenizer, lineage=lineage_of(recipe, batches)
    )
    write_text(run_folder / RECIPE, to_toml(recipe.model_dump(mode="json", exclude_none=True)))
    try:
        return trainer.run()
    finally:
        write_report(run_folder)


def build_model(recipe: PretrainRecipe, device: torch.device) -> LanguageModel:
    """The model with its weights at the start, in fp32 and in memory of its own.

    Raises:
        RecipeError: there is no such preset.
        NotFoundError: there is no such checkpoint.
        ConfigError: the shape is impossible.
    """
    import torch

    from camelid.checkpoint import load_model, open_checkpoint
    from camelid.model import ARCHITECTURES

    choice = recipe.model
    if choice.checkpoint is not None:
        with closing(open_checkpoint(choice.checkpoint)) as checkpoint:
            model = load_model(checkpoint, device=device, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model
    config = _config(choice)
    with device:
        model = ARCHITECTURES.load(config.model_type).from_config(config)
    model.initialize(recipe.training.seed)
    return model


def lineage_of(recipe: PretrainRecipe, batches: BatchSource) -> dict[str, Any]:
    """The facts that tell what a model was made from; the parent's hashes come from its own lineage, if it has one."""
    from camelid.checkpoint.lineage import LINEAGE, read_lineage

    facts: dict[str, Any] = {"data": batches.fingerprint, "recipe": recipe.model_dump(mode="json")}
    parent = recipe.model.checkpoint
    if parent is not None and (parent / LINEAGE).is_file():
        files = read_lineage(parent).files
        facts["parent"] = {name: record.sha256 for name, record in files.items() if name.endswith(".safetensors")}
    return facts


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Nested tables of numbers, strings and flags as TOML, which JSON spells the same way."""
    values = "".join(f"{name} = {json.dumps(v)}\n" for name, v in table.items() if not isinstance(v, dict))
    tables = [(f"{prefix}{name}", v) for name, v in table.items() if isinstance(v, dict)]
    return values + "".join(f"\n[{name}]\n{to_toml(inner, f'{name}.')}" for name, inner in tables)


def _config(choice: ModelSettings) -> LlamaConfig:
    if choice.shape is not None:
        return choice.shape.config()
    assert choice.preset is not None
    preset = PRESETS.get(choice.preset)
    if preset is None:
        raise NotFoundError(
            f"there is no preset named '{choice.preset}'",
            where="model.preset",
            hint=did_you_mean(choice.preset, PRESETS),
        )
    config = replace(preset.config, dtype="float32")
    return config if choice.vocab_size is None else replace(config, vocab_size=choice.vocab_size)
