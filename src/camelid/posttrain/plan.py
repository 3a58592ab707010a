"""What a fine-tuning recipe will take, before it runs: `camelid plan`."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from camelid.plan.training import plan_training
from camelid.posttrain.sft import conversations_of, training_settings
from camelid.train.plan import workload_of

if TYPE_CHECKING:
    from camelid.data.conversation_batches import PackingReport
    from camelid.model.config import ModelConfig
    from camelid.plan.training import TrainingPlan
    from camelid.posttrain.sft import SftRecipe

BYTES_PER_TOKEN = 4
"""Of English text in a vocabulary of the usual sizes; assumed only where there is no tokenizer to count with."""

TOKENS_PER_MESSAGE = 8
"""Around a message's text, assumed with it: Llama 3 writes a header and an end of turn, 5 to 9 tokens by vocabulary."""


def plan_sft(
    recipe: SftRecipe,
    *,
    config: ModelConfig | None = None,
    device: str | None = None,
    price_per_hour: float | None = None,
) -> TrainingPlan:
    """Plan a run of `sft`. The conversations are rendered and packed as the run itself begins by doing.

    Args:
        recipe: the recipe.
        config: of the model, where it does not exist yet; the conversations' tokens are then assumed, not counted.
        device: to plan for, in place of the recipe's: one that is here, or a name of `camelid.plan.DEVICES`.
        price_per_hour: of one device.

    Raises:
        NotFoundError: there is no such model, chat format or file.
        FormatError: a file or a row is no conversation, or nothing is left to learn from.
        ChatFormatError: the model has no chat format, or it cannot express a conversation.
        ConfigError: there is no such device.
    """
    if config is None:
        config, rows = _counted(recipe)
    else:
        rows = _assumed(recipe)
    workload = workload_of(
        training_settings(recipe, rows.number),
        config,
        batch_size=recipe.data.batch_size,
        sequence_length=recipe.data.sequence_length,
        device=device or recipe.device,
        document_length=rows.conversation_length,
        target_share=rows.target_share,
        price_per_hour=price_per_hour,
    )
    return plan_training(config, workload)


@dataclass(frozen=True)
class _Rows:
    """What the packed conversations are like."""

    number: int
    conversation_length: float
    target_share: float


def _counted(recipe: SftRecipe) -> tuple[ModelConfig, _Rows]:
    from camelid.checkpoint import open_checkpoint
    from camelid.checkpoint.catalogue import resolve
    from camelid.checkpoint.load import described_tensors
    from camelid.data.conversation_batches import ConversationBatches
    from camelid.tokenizer.chat import chat_format_for

    with closing(open_checkpoint(resolve(str(recipe.model)))) as checkpoint:
        tokenizer = checkpoint.load_tokenizer()
        chat = chat_format_for(tokenizer, template=checkpoint.chat_template, name=recipe.chat_format)
        batches = ConversationBatches(
            conversations_of(recipe.data.sources),
            chat,
            sequence_length=recipe.data.sequence_length,
            batch_size=recipe.data.batch_size,
            seed=recipe.training.seed,
            too_long=recipe.data.too_long,
        )
        return described_tensors(checkpoint)[0], _rows(batches.report)


def _rows(report: PackingReport) -> _Rows:
    dropped = report.num_dropped + report.num_without_target
    return _Rows(
        number=report.num_rows,
        conversation_length=report.num_tokens / (report.num_conversations - dropped),
        target_share=report.num_targets / (report.num_rows * report.row_length),
    )


def _assumed(recipe: SftRecipe) -> _Rows:
    """From the text's bytes; all of it counts as learned, which errs to the long side."""
    num_bytes = num_conversations = num_messages = 0
    for conversation in conversations_of(recipe.data.sources):
        num_conversations += 1
        num_messages += len(conversation.messages)
        num_bytes += sum(len(str(message.get("content") or "").encode()) for message in conversation.messages)
    num_tokens = max(1, num_bytes // BYTES_PER_TOKEN + num_messages * TOKENS_PER_MESSAGE)
    return _Rows(
        number=math.ceil(num_tokens / recipe.data.sequence_length),
        conversation_length=max(1.0, num_tokens / max(1, num_conversations)),
        target_share=1.0,
    )
