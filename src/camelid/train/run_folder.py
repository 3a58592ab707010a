"""What all training has in common: weights to start from, data to learn from, a run folder that tells everything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camelid.base.errors import ConfigError, RecipeError
from camelid.base.files import write_text
from camelid.train.settings import RECIPE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from camelid.checkpoint.base import Checkpoint
    from camelid.data.batch import BatchSource
    from camelid.model.base import LanguageModel, ModelConfig
    from camelid.tokenizer import Tokenizer
    from camelid.train.checkpointing import Companions
    from camelid.train.settings import TrainSettings
    from camelid.train.trainer import TrainResult
    from camelid.train.validation import ValidationSource


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and what it is measured on."""

    batches: BatchSource
    tokenizer: Tokenizer | None = None
    """The one whose ids the batches hold."""
    validation: ValidationSource | None = None
    """Held-out data."""


def train_in(
    run_folder: Path,
    recipe: Mapping[str, Any],
    model: LanguageModel,
    data: TrainingData,
    settings: TrainSettings,
    companions: Companions,
) -> TrainResult:
    """Train, or take up a run that was stopped, and leave the recipe and a report beside what `Trainer` writes.

    Args:
        run_folder: the run's folder.
        recipe: the recipe, as JSON has it.
        model: with its weights at the start, as `Trainer` wants it.
        data: what to learn from.
        settings: of the trainer.
        companions: what goes into each checkpoint's model folder beside the weights.

    Raises:
        RecipeError: the run folder belongs to another recipe, or the settings are impossible.
        TrainingError: training cannot go on.
        ResourceError: another process trains in this folder, or the disk is full.
    """
    from camelid.train.report import write_report
    from camelid.train.trainer import Trainer

    trainer = Trainer(model, data.batches, settings, run_folder, validation=data.validation, companions=companions)
    write_text(run_folder / RECIPE, to_toml(recipe))
    try:
        return trainer.run()
    finally:
        write_report(run_folder)


def trainable_model(checkpoint: Checkpoint, device: torch.device) -> LanguageModel:
    """A checkpoint's model in fp32 and in memory of its own, which an update may write to.

    Raises:
        CamelidError: what `load_model` raises.
    """
    import torch

    from camelid.checkpoint import load_model, model_config

    check_reads_text(model_config(checkpoint))
    model = load_model(checkpoint, device=device, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def check_reads_text(config: ModelConfig) -> None:
    """Refuse a model that reads images: its text alone would be trained, and its images forgotten.

    Raises:
        ConfigError: it is one.
    """
    if config.image_token_id is not None:
        raise ConfigError(
            "a model that reads images cannot be trained here yet",
            where=config.model_type,
            hint="train the text model that it grew from",
        )


def check_positions(sequence_length: int, config: ModelConfig) -> None:
    """Refuse sequences that are longer than a model's positions.

    Raises:
        RecipeError: they are.
    """
    positions = config.max_position_embeddings
    if sequence_length > positions:
        what = f"{sequence_length} tokens are more than the {positions} positions of the model"
        raise RecipeError(what, where="data.sequence_length")


def lineage_of(recipe: Mapping[str, Any], batches: BatchSource, parent: Path | None = None) -> dict[str, Any]:
    """The facts that tell what a model was made from.

    Args:
        recipe: the recipe, as JSON has it.
        batches: what it learns from.
        parent: the checkpoint it starts from; its hashes come from its own lineage, if it has one.
    """
    from camelid.checkpoint.lineage import LINEAGE, read_lineage

    facts: dict[str, Any] = {"data": batches.fingerprint, "recipe": dict(recipe)}
    if parent is not None and (parent / LINEAGE).is_file():
        files = read_lineage(parent).files
        facts["parent"] = {name: record.sha256 for name, record in files.items() if name.endswith(".safetensors")}
    return facts


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Nested tables of numbers, strings, flags and lists as TOML; tables inside a list are written inline."""
    values = "".join(f"{name} = {_value(v)}\n" for name, v in table.items() if not isinstance(v, dict))
    tables = [(f"{prefix}{name}", v) for name, v in table.items() if isinstance(v, dict)]
    return values + "".join(f"\n[{name}]\n{to_toml(inner, f'{name}.')}" for name, inner in tables)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON and TOML differ in DEL alone
