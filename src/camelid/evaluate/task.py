"""What a task is: settings in a recipe, and the measurement that they make of a model.

A benchmark is one file in `evaluate/tasks/` with a subclass of `Task`, and one line in TASKS:

    class Capitals(Task):
        path: Path

        def fingerprint(self) -> str:
            return sha256(self.path)

        def measure(self, subject: Subject) -> Measurement:
            replies = subject.replies([...], max_tokens=8)
            return Measurement(metrics=(accuracy(num_right, num_items),), num_items=num_items)

A task whose metric is an accuracy gives a subject that knows every answer 1.0, and one that guesses its chance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from camelid.base.errors import RecipeError
from camelid.base.recipe import Recipe, validated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from camelid.evaluate.windows import Window
    from camelid.llm import Prompt
    from camelid.tokenizer import Tokenizer


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Value):
    """One number about a model."""

    name: str
    value: float
    standard_error: float | None = None
    """None where the items are too few to tell."""
    interval: tuple[float, float] | None = None
    """A 95% interval, where the standard error misleads."""
    num_items: int
    """How many items the value is a mean over."""

    def text(self) -> str:
        """The value for people: `accuracy 0.812 ± 0.014 (95%: 0.783 to 0.838)`."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        interval = "" if self.interval is None else f" (95%: {self.interval[0]:.3g} to {self.interval[1]:.3g})"
        return f"{self.name} {self.value:.4g}{error}{interval}"


class Sample(_Value):
    """One item as the report shows it."""

    item: str
    """Where it comes from: `file:line`, or a document's number."""
    prompt: str
    output: str = ""
    """What the model produced."""
    expected: str = ""
    right: bool | None = None
    """None where an item is neither right nor wrong."""
    note: str = ""


class Measurement(_Value):
    """What a task found out."""

    metrics: tuple[Metric, ...]
    """The one that stands for the task comes first."""
    num_items: int
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    """How it was measured, where the settings leave a choice to the model."""


class Subject(Protocol):
    """What is measured: a model, or a stand-in whose answers a test knows."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""

    @property
    def has_chat_template(self) -> bool:
        """Whether it came with a chat template: whether it is meant to be talked to."""

    def replies(self, prompts: Sequence[Prompt], *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """The reply to each prompt, in order."""

    def nats(self, windows: Iterable[Window]) -> Iterator[NDArray[np.float64]]:
        """−ln p of each scored token of each window, in order."""


class Task(Recipe, ABC):
    """The settings of one `[[tasks]]` table; a subclass adds its own and measures."""

    task: str
    """The name in TASKS."""
    name: str | None = None
    """How the report calls it; needed where a task is used twice."""

    @property
    def label(self) -> str:
        """The name in the report."""
        return self.name or self.task

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the contents of all files that the task reads.

        Raises:
            NotFoundError: one of them is missing.
        """

    @abstractmethod
    def measure(self, subject: Subject) -> Measurement:
        """Put the task's items to the subject.

        Raises:
            FormatError: a file is damaged or empty; file and line are named.
        """


def parse_task(settings: Mapping[str, Any] | Task) -> Task:
    """The task that a table of a recipe describes.

    Raises:
        RecipeError: the table names no task, has an unknown key, or an impossible value.
        NotFoundError: there is no such task.
    """
    from camelid.evaluate import TASKS

    if isinstance(settings, Task):
        return settings
    name = settings.get("task") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        raise RecipeError(
            "a task has no name",
            where="tasks",
            hint=f'each [[tasks]] table begins with task = "…", one of {", ".join(TASKS.names())}',
        )
    return validated(TASKS.load(name), settings, f"the task '{name}'")


def accuracy(num_right: int, num_items: int, name: str = "accuracy") -> Metric:
    """A share of right answers with its binomial standard error and its 95% score interval (Wilson 1927).

    The interval holds where the standard error does not: for few items, and for shares near 0 and 1.
    """
    share = num_right / num_items
    z = 1.959964
    centre = (share + z * z / (2 * num_items)) / (1 + z * z / num_items)
    spread = share * (1 - share) / num_items
    reach = z / (1 + z * z / num_items) * math.sqrt(spread + (z / (2 * num_items)) ** 2)
    interval = (max(0.0, centre - reach), min(1.0, centre + reach))
    return Metric(name=name, value=share, standard_error=math.sqrt(spread), interval=interval, num_items=num_items)
