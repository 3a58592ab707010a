"""Evaluation: tasks, the harness that runs them on a model, and its report.

recipe = load_recipe(EvaluateRecipe, Path("recipes/evaluate.toml"))
report = evaluate(recipe, Path("runs/evaluate"))
print(report.text())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports
from camelid.base.registry import Registry

if TYPE_CHECKING:
    from camelid.evaluate.harness import EvaluateRecipe, evaluate
    from camelid.evaluate.report import EvaluationReport
    from camelid.evaluate.task import Measurement, Metric, Sample, Task

__all__ = ["TASKS", "EvaluateRecipe", "EvaluationReport", "Measurement", "Metric", "Sample", "Task", "evaluate"]

TASKS: Registry[type[Task]] = Registry(
    "evaluation task",
    "camelid.tasks",
    {
        "bits_per_byte": "camelid.evaluate.tasks.bits_per_byte:BitsPerByte",
        "questions": "camelid.evaluate.tasks.questions:Questions",
    },
)
"""Name → the task's settings, which are also the task."""

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "EvaluateRecipe": "camelid.evaluate.harness",
        "EvaluationReport": "camelid.evaluate.report",
        "Measurement": "camelid.evaluate.task",
        "Metric": "camelid.evaluate.task",
        "Sample": "camelid.evaluate.task",
        "Task": "camelid.evaluate.task",
        "evaluate": "camelid.evaluate.harness",
    },
    "TASKS",
)
