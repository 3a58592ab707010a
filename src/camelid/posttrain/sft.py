"""Supervised fine-tuning: a model learns from conversations what the assistant says in them.

recipe = load_recipe(SftRecipe, Path("recipes/sft.toml"))
result = sft(recipe, Path("runs/sft"))
camelid.load(result.checkpoint / "model").generate([{"role": "user", "content": "Hello"}])

It is training as ever; what is special are the batches, whose loss is taken where the assistant speaks, and a model
folder that brings its chat template and stops where a turn ends.
"""

from __future__ import annotations

import math
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from camelid.base.errors import FormatError, NotFoundError
from camelid.base.files import matching_paths
from camelid.base.recipe import Recipe
from camelid.base.runtime import pick_device
from camelid.posttrain.method import Method
from camelid.train.run_folder import TrainingData, check_positions, lineage_of, train_in, trainable_model
from camelid.train.settings import Count, TrainSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from camelid.data.conversation_batches import ConversationBatches
    from camelid.data.conversations import Conversation
    from camelid.tokenizer.chat_format import ChatFormat
    from camelid.train.trainer import TrainResult


class ConversationSource(Recipe):
    """Files of conversations; a recipe may name just the files, as a string."""

    files: str = Field(min_length=1)
    """A path or a glob pattern; `camelid.data.conversations` says what the files may hold."""
    repeats: Count = 1
    """How often an epoch shows each of these conversations: the weight of this source beside the others."""

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: object) -> object:
        return {"files": value} if isinstance(value, str) else value


class ConversationSettings(Recipe):
    """Which batches."""

    sources: tuple[ConversationSource, ...] = Field(min_length=1)
    validation: tuple[ConversationSource, ...] = ()
    """Conversations that are held out to be measured on."""
    sequence_length: Count = 1024
    """Tokens of a row, into which conversations are packed whole."""
    batch_size: Count = 8
    """Rows of one batch; an update takes `training.accumulation` batches."""
    too_long: Literal["truncate", "drop"] = "drop"
    """What becomes of a conversation that no row can hold."""


class SftRecipe(Recipe):
    """Everything that a fine-tuning run depends on."""

    model: Path
    """A folder or file of any format that camelid opens, a catalogue name, or a hub id that has been pulled."""
    data: ConversationSettings
    chat_format: str | None = None
    """A name of `camelid.tokenizer.chat.CHAT_FORMATS`; None: the model's own template, or what its vocabulary tells."""
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """How often to go through the conversations, in place of `training.steps`."""
    training: TrainSettings = TrainSettings()
    device: str = "auto"

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if self.epochs is not None and "steps" in self.training.model_fields_set:
            raise ValueError("epochs and training.steps exclude each other")
        return self


def sft(recipe: SftRecipe, run_folder: Path) -> TrainResult:
    """Fine-tune, or take up a run that was stopped, and write its report.

    What became of the conversations is printed to stderr: how many were cut short or left out.

    Args:
        recipe: what to train, on what, and how.
        run_folder: gets the recipe, what `Trainer` writes, and `report.html`.

    Raises:
        NotFoundError: there is no such model, chat format or file.
        FormatError: a file or a row is no conversation, or nothing is left to learn from.
        ChatFormatError: the model has no chat format, or it cannot express a conversation; `where` is file and line.
        RecipeError: the run folder belongs to another recipe, or the recipe is impossible.
        TrainingError: training cannot go on.
    """
    from camelid.checkpoint import model_config, open_checkpoint
    from camelid.checkpoint.catalogue import resolve
    from camelid.llm import check_tokenizer_fits
    from camelid.tokenizer.chat import chat_format_for
    from camelid.train.checkpointing import Companions

    device = pick_device(recipe.device)
    path = resolve(str(recipe.model))
    with closing(open_checkpoint(path)) as checkpoint:
        tokenizer = checkpoint.load_tokenizer()
        check_tokenizer_fits(tokenizer, model_config(checkpoint).num_embeddings, where=checkpoint.path)
        chat = chat_format_for(tokenizer, template=checkpoint.chat_template, name=recipe.chat_format)
        batches = _batches(recipe, recipe.data.sources, chat)
        print(f"conversations: {batches.report}", file=sys.stderr)
        validation = _batches(recipe, recipe.data.validation, chat) if recipe.data.validation else None
        if validation is not None:
            print(f"validation: {validation.report}", file=sys.stderr)
        model = trainable_model(checkpoint, device)
        configured = {"eos_token_id": checkpoint.stated("eos_token_id"), **checkpoint.generation_config}
    check_positions(recipe.data.sequence_length, model.config)
    facts = recipe.model_dump(mode="json", exclude_none=True, exclude=_derived(recipe))
    companions = Companions(
        tokenizer=tokenizer,
        chat_template=chat.template,
        generation_config=with_stop_ids(configured, chat.stop_ids),
        lineage=lineage_of(facts, batches, path),
    )
    data = TrainingData(batches, tokenizer, validation)
    return train_in(run_folder, facts, model, data, training_settings(recipe, batches.num_rows), companions)


def training_settings(recipe: SftRecipe, num_rows: int) -> TrainSettings:
    """The recipe's settings with the steps that its epochs come to.

    Args:
        recipe: the recipe.
        num_rows: rows of an epoch.
    """
    if recipe.epochs is None:
        return recipe.training
    rows_per_step = recipe.data.batch_size * recipe.training.accumulation
    steps = math.ceil(recipe.epochs * num_rows / rows_per_step)
    return recipe.training.model_copy(update={"steps": steps})


def with_stop_ids(generation_config: Mapping[str, Any], stop_ids: Sequence[int]) -> dict[str, Any]:
    """A generation config in which a turn's end ends a reply, beside what did so before."""
    before = generation_config.get("eos_token_id")
    others = before if isinstance(before, list | tuple) else [] if before is None else [before]
    return {**generation_config, "eos_token_id": list(dict.fromkeys([*stop_ids, *others]))}


def conversations_of(sources: Sequence[ConversationSource]) -> Iterator[Conversation]:
    """The conversations of some sources in order, repeated as often as their source says.

    Raises:
        NotFoundError: a pattern matches no file.
        FormatError: a row is no conversation, `where` is the file and the line; or a source has none.
    """
    from camelid.data.conversations import read_conversations

    for source in sources:
        paths = _files(source.files)
        found = False
        for _ in range(source.repeats):
            for conversation in read_conversations(paths):
                found = True
                yield conversation
        if not found:
            raise FormatError("there is no conversation in it", where=source.files)


def _files(pattern: str) -> list[Path]:
    files = [file for file in matching_paths(pattern) if file.is_file()]
    if not files:
        hint = "name its files: 'folder/*.jsonl'" if Path(pattern).expanduser().is_dir() else None
        raise NotFoundError("no file of conversations matches", where=pattern, hint=hint)
    return files


def _batches(recipe: SftRecipe, sources: Sequence[ConversationSource], chat: ChatFormat) -> ConversationBatches:
    from camelid.data.conversation_batches import ConversationBatches

    return ConversationBatches(
        conversations_of(sources),
        chat,
        sequence_length=recipe.data.sequence_length,
        batch_size=recipe.data.batch_size,
        seed=recipe.training.seed,
        too_long=recipe.data.too_long,
    )


def _derived(recipe: SftRecipe) -> dict[str, Any]:
    """What a written recipe leaves out: steps that follow from epochs, which would exclude each other."""
    return {} if recipe.epochs is None else {"training": {"steps"}}


METHOD = Method(SftRecipe, sft)
