"""What a pretraining recipe will take, before it runs: `camelid plan` and `camelid pretrain --dry-run`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from camelid.plan.training import plan_training
from camelid.plan.workload import Workload
from camelid.train.pretrain import config_from_scratch

if TYPE_CHECKING:
    from camelid.model.config import ModelConfig
    from camelid.plan.training import TrainingPlan
    from camelid.train.pretrain import ModelSettings, PretrainRecipe
    from camelid.train.settings import TrainSettings


def plan_pretraining(
    recipe: PretrainRecipe,
    *,
    config: ModelConfig | None = None,
    device: str | None = None,
    price_per_hour: float | None = None,
) -> TrainingPlan:
    """Plan a run of `pretrain`; where its shards exist already, their documents' length is taken into account.

    Args:
        recipe: the recipe.
        config: of the model, where the checkpoint that the recipe starts from does not exist yet.
        device: to plan for, in place of the recipe's: one that is here, or a name of `camelid.plan.DEVICES`.
        price_per_hour: of one device.

    Raises:
        NotFoundError: there is no such preset or checkpoint.
        ConfigError: the shape is impossible, or there is no such device.
        FormatError: the shards' manifest is damaged.
    """
    config = config or _config(recipe.model)
    return plan_training(
        config,
        workload_of(
            recipe.training,
            config,
            batch_size=recipe.data.batch_size,
            sequence_length=recipe.data.sequence_length,
            device=device or recipe.device,
            document_length=_document_length(recipe),
            price_per_hour=price_per_hour,
        ),
    )


def workload_of(
    settings: TrainSettings,
    config: ModelConfig,
    *,
    batch_size: int,
    sequence_length: int,
    device: str,
    document_length: float | None = None,
    target_share: float = 1.0,
    price_per_hour: float | None = None,
) -> Workload:
    """The workload of a trainer with these settings.

    Args:
        settings: of the trainer.
        config: of the model.
        batch_size: rows of a batch.
        sequence_length: tokens of a row.
        device: to plan for.
        document_length: tokens of a typical document; None: not known.
        target_share: share of the tokens that the loss is taken at.
        price_per_hour: of one device.
    """
    import torch

    from camelid.plan.devices import DEVICES
    from camelid.train.checkpointing import NUM_KEPT
    from camelid.train.losses import default_chunk_tokens

    elsewhere = device in DEVICES or device.startswith("cuda")
    kind = "cuda" if elsewhere or (device == "auto" and torch.cuda.is_available()) else "cpu"
    every = settings.milestone_every
    return Workload(
        steps=settings.steps,
        batch_size=batch_size,
        sequence_length=sequence_length,
        accumulation=settings.accumulation,
        optimizer=settings.optimizer.name,
        activation_checkpointing=settings.activation_checkpointing,
        dtype=settings.dtype,
        device=device,
        document_length=document_length,
        target_share=target_share,
        chunk_tokens=default_chunk_tokens(config.vocab_size, torch.device(kind)),
        num_checkpoints=NUM_KEPT + 1 + (settings.steps // every if every else 0),
        price_per_hour=price_per_hour,
    )


def _config(choice: ModelSettings) -> ModelConfig:
    from camelid.checkpoint import open_checkpoint
    from camelid.checkpoint.load import described_tensors

    if choice.checkpoint is None:
        return config_from_scratch(choice)
    with closing(open_checkpoint(choice.checkpoint)) as checkpoint:
        return described_tensors(checkpoint)[0]


def _document_length(recipe: PretrainRecipe) -> float | None:
    """Tokens of the shards' mean document; None while there are no shards, or where none ends within a row."""
    from camelid.data.manifest import MANIFEST, read_manifest

    if not (recipe.data.shards / MANIFEST).is_file():
        return None
    shards = read_manifest(recipe.data.shards).shards("train")
    num_tokens, num_documents = (sum(getattr(s, name) for s in shards) for name in ("num_tokens", "num_documents"))
    return num_tokens / num_documents if num_documents else None
