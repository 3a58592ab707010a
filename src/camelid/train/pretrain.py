"""Pretraining: from a recipe and token shards to a model folder, from scratch or from any checkpoint.

recipe = load_recipe(PretrainRecipe, Path("recipes/small.toml"))
pretrain(recipe, Path("runs/small"))
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from camelid.base.errors import NotFoundError, RecipeError, TokenizerError, did_you_mean
from camelid.base.recipe import Recipe
from camelid.base.runtime import pick_device
from camelid.model.llama_config import LlamaConfig
from camelid.model.presets import PRESETS
from camelid.model.rope import RopeParameters
from camelid.train.run_folder import (
    TrainingData,
    check_positions,
    check_reads_text,
    lineage_of,
    train_in,
    trainable_model,
)
from camelid.train.settings import Count, TrainSettings

if TYPE_CHECKING:
    import torch

    from camelid.checkpoint.base import Checkpoint
    from camelid.data.manifest import Split
    from camelid.model.base import LanguageModel
    from camelid.model.config import ModelConfig
    from camelid.tokenizer import Tokenizer
    from camelid.train.trainer import TrainResult


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
    """The folder that `camelid prepare` filled: token shards and their tokenizer."""
    sequence_length: Count = 1024
    batch_size: Count = 8
    """Sequences of one batch; an update takes `training.accumulation` batches."""


class PretrainRecipe(Recipe):
    """Everything that a pretraining run depends on."""

    model: ModelSettings
    data: DataSettings
    training: TrainSettings = TrainSettings()
    device: str = "auto"


def pretrain(recipe: PretrainRecipe, run_folder: Path, *, data: TrainingData | None = None) -> TrainResult:
    """Train, or take up a run that was stopped, and write its report.

    Args:
        recipe: what to train and how.
        run_folder: gets the recipe, what `Trainer` writes, and `report.html`.
        data: in place of what `recipe.data` names.

    Raises:
        RecipeError: the run folder belongs to another recipe, or the recipe is impossible.
        NotFoundError: there are no shards, or no such checkpoint or preset.
        TokenizerError: the shards hold ids of another vocabulary than the model's.
        TrainingError: training cannot go on.
    """
    from camelid.train.checkpointing import Companions

    data = data or open_data(recipe)
    model, generation_config = starting_point(recipe, pick_device(recipe.device), data.tokenizer)
    check_positions(recipe.data.sequence_length, model.config)
    facts = recipe.model_dump(mode="json", exclude_none=True)
    companions = Companions(
        tokenizer=data.tokenizer,
        generation_config=generation_config,
        lineage=lineage_of(facts, data.batches, recipe.model.checkpoint),
    )
    return train_in(run_folder, facts, model, data, recipe.training, companions)


def open_data(recipe: PretrainRecipe) -> TrainingData:
    """The shards that a recipe names, with their held-out part if they have one.

    Raises:
        NotFoundError: there are no shards, or no tokenizer beside them.
        FormatError: they are damaged or were never finished.
        TokenizerError: the tokenizer beside them is not the one that they were made with.
    """
    from camelid.data.loader import PretrainBatches
    from camelid.data.prepare import TOKENIZER
    from camelid.data.shards import TokenShards
    from camelid.tokenizer import load_tokenizer

    choice = recipe.data

    def batches(split: Split) -> PretrainBatches:
        return PretrainBatches(
            TokenShards(choice.shards, tokenizer, split),
            sequence_length=choice.sequence_length,
            batch_size=choice.batch_size,
            seed=recipe.training.seed,
        )

    if not choice.shards.is_dir():
        hint = "`camelid prepare` writes them"
        raise NotFoundError("there is no folder of token shards", where=choice.shards, hint=hint)
    tokenizer = load_tokenizer(choice.shards / TOKENIZER)
    train = batches("train")
    held_out = train.mixture.parts[0].shards.manifest.shards("validation")
    return TrainingData(train, tokenizer, batches("validation") if held_out else None)


def starting_point(
    recipe: PretrainRecipe, device: torch.device, tokenizer: Tokenizer | None
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model with its weights at the start, and its generation config.

    Args:
        recipe: what to start from.
        device: where the weights are wanted.
        tokenizer: of the data; a model from scratch takes its begin and end tokens.

    Raises:
        RecipeError: the vocabulary does not fit the model.
        TokenizerError: the data hold ids of another vocabulary than the checkpoint's.
        CamelidError: what `build_model` raises.
    """
    from camelid.checkpoint import open_checkpoint

    if recipe.model.checkpoint is None:
        model = build_model(recipe, device, tokenizer)
        _check_vocabulary_size(tokenizer, model.config.vocab_size)
        ends = {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
        return model, {} if tokenizer is None else {name: end for name, end in ends.items() if end is not None}
    with closing(open_checkpoint(recipe.model.checkpoint)) as checkpoint:
        if tokenizer is not None:
            _check_same_vocabulary(checkpoint, tokenizer)
        model = trainable_model(checkpoint, device)
        _check_vocabulary_size(tokenizer, model.config.vocab_size)
        return model, dict(checkpoint.generation_config)


def build_model(recipe: PretrainRecipe, device: torch.device, tokenizer: Tokenizer | None = None) -> LanguageModel:
    """The model with its weights at the start, in fp32 and in memory of its own.

    Args:
        recipe: what to build.
        device: where the weights are wanted.
        tokenizer: whose begin and end tokens a model from scratch takes; None: the architecture's defaults stay.

    Raises:
        NotFoundError: there is no such preset or checkpoint.
        ConfigError: the shape is impossible.
    """
    from camelid.checkpoint import open_checkpoint
    from camelid.model import ARCHITECTURES

    choice = recipe.model
    if choice.checkpoint is not None:
        with closing(open_checkpoint(choice.checkpoint)) as checkpoint:
            return trainable_model(checkpoint, device)
    config = config_from_scratch(choice)
    if tokenizer is not None:
        config = config.changed(bos_token_id=tokenizer.special.bos, eos_token_id=tokenizer.special.eos)
    with device:
        model = ARCHITECTURES.load(config.model_type).from_config(config)
    model.initialize(recipe.training.seed)
    return model


def _check_vocabulary_size(tokenizer: Tokenizer | None, vocab_size: int) -> None:
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise RecipeError(
            f"the tokenizer has {tokenizer.vocab_size} entries and the model only {vocab_size}",
            where="model.vocab_size",
        )


def _check_same_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Refuse to train a model on ids that mean other words to it; one that came without a tokenizer is believed."""
    from camelid.data.vocabulary import Vocabulary

    try:
        own = checkpoint.load_tokenizer()
    except (TokenizerError, NotFoundError):
        return
    if Vocabulary.of(own).fingerprint != Vocabulary.of(tokenizer).fingerprint:
        raise TokenizerError(
            f"the data hold ids of another vocabulary (of {tokenizer.vocab_size} tokens) than the checkpoint's "
            f"(of {own.vocab_size})",
            where=checkpoint.path,
            hint="prepare the shards with the checkpoint's own tokenizer",
        )


def config_from_scratch(choice: ModelSettings) -> ModelConfig:
    """The config of a model that is trained from a preset or a shape.

    Raises:
        NotFoundError: there is no such preset.
        ConfigError: the shape is impossible.
    """
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
    check_reads_text(preset.config)
    config = preset.config.changed(dtype="float32")
    return config if choice.vocab_size is None else config.changed(vocab_size=choice.vocab_size)
