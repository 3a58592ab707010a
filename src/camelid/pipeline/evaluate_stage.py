"""The stage that measures a model; the result is the folder with `results.json` and `report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from camelid.evaluate.harness import VERSION, EvaluateRecipe
from camelid.evaluate.tasks.bits_per_byte import BitsPerByte
from camelid.evaluate.tasks.questions import Questions, read_questions
from camelid.pipeline.estimate import UNKNOWN_MODEL, Estimate, corpus_bytes
from camelid.pipeline.kind import StageKind
from camelid.posttrain.plan import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from camelid.evaluate.task import Task
    from camelid.model.config import ModelConfig
    from camelid.pipeline.estimate import Forecast


PROBE_LENGTH = 512
"""Tokens that the rate is measured on."""


class EvaluateStage(StageKind[EvaluateRecipe]):
    """Puts tasks to a model."""

    schema = EvaluateRecipe
    version = VERSION

    def sources(self, recipe: EvaluateRecipe) -> Sequence[str]:
        """The tasks' files: every setting that is a path, and the texts of bits per byte, which may be globs."""
        texts = [name for task in recipe.tasks if isinstance(task, BitsPerByte) for name in task.texts]
        return [*map(str, _paths(recipe)), *texts]

    def models(self, recipe: EvaluateRecipe) -> Sequence[str]:
        """The model that is measured."""
        return [recipe.model]

    def run(self, recipe: EvaluateRecipe, folder: Path) -> Path:
        """Measure what has not been measured yet."""
        from camelid.evaluate.harness import evaluate

        evaluate(recipe, folder)
        return folder

    def estimate(self, recipe: EvaluateRecipe, forecast: Forecast) -> Estimate:
        """2·P FLOPs a token at the rate of training; what plug-ins and baselines take is not known."""
        from camelid.plan.memory import CPU_PROGRAM

        config = forecast.config(recipe.model)
        if config is None:
            return Estimate(note=UNKNOWN_MODEL)
        tokens = sum(_tokens(task, forecast) for task in recipe.tasks)
        flops = 2.0 * config.num_parameters * tokens
        return Estimate(
            seconds=flops / _flops_per_second(forecast.of(recipe.model), config, recipe.device),
            tokens=tokens,
            parameters=config.num_parameters,
            flops=flops,
            memory=4 * config.num_parameters + CPU_PROGRAM,
            note="replies at their longest",
        )


def _flops_per_second(training: Estimate | None, config: ModelConfig, device: str) -> float:
    """The rate that the model is trained at, measured now if it was not measured for its training."""
    if training is not None and training.flops and training.seconds:
        return training.flops / training.seconds
    from camelid.plan.training import plan_training
    from camelid.plan.workload import Workload

    length = min(config.max_position_embeddings, PROBE_LENGTH)
    plan = plan_training(config, Workload(steps=1, batch_size=1, sequence_length=length, device=device))
    return plan.flops / plan.seconds


def _tokens(task: Task, forecast: Forecast) -> float:
    """Tokens that a task puts through the model, about."""
    if isinstance(task, BitsPerByte):
        if task.shards is not None:
            return forecast.tokens(task.shards, held_out=task.split == "validation")
        return corpus_bytes(task.texts) / BYTES_PER_TOKEN
    if isinstance(task, Questions):
        questions = read_questions(task.path)
        num_bytes = sum(len(question.text.encode()) for question in questions)
        return num_bytes / BYTES_PER_TOKEN + len(questions) * task.max_tokens
    return 0.0


def _paths(value: object) -> Iterator[Path]:
    """Every path in a recipe: tasks may come from plug-ins."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _paths(item)
