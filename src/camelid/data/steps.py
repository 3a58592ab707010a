"""What a cleaning step is: settings in a recipe, and the worker that they build.

A filter judges one document by itself, so that any process can do it. A deduplicator compares a document with all that
came before: its key is computed anywhere, and looked up in one index in the order of the corpus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from camelid.base.errors import RecipeError
from camelid.base.recipe import Recipe, validated
from camelid.base.registry import Registry

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping
    from pathlib import Path

    from camelid.data.document import Document


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a document does not stay in the corpus."""

    rule: str
    """The rule's name within its step, as `min_words`."""
    detail: str
    """What was found in this document, as `31 words`."""


class Filter(Protocol):
    """Judges one document by itself; the same document always gets the same answer."""

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, changed or not, or why it is dropped."""


class SeenIndex(Protocol):
    """The documents kept so far, on disk."""

    def first_seen(self, key: bytes, document_id: str) -> str | None:
        """The id of the earlier document that this key repeats; or None, and the key is remembered from now on."""


class Deduplicator(ABC):
    """Drops a document that repeats an earlier one."""

    rule: str
    """The name of the one rule it drops by."""

    @abstractmethod
    def key(self, text: str) -> bytes:
        """What the index needs of a text."""

    @abstractmethod
    def open(self, database: sqlite3.Connection, name: str) -> SeenIndex:
        """The index whose tables in the database begin with `name`; made if they are not there."""


class StepRecipe(Recipe, ABC):
    """The settings of one step."""

    step: str
    """The name in STEPS."""

    @abstractmethod
    def build(self) -> Filter | Deduplicator:
        """The worker; loads what it needs, and is built once in each process."""

    def inputs(self) -> list[Path]:
        """The files whose contents the step's results depend on."""
        return []


STEPS: Registry[type[StepRecipe]] = Registry(
    "cleaning step",
    "camelid.cleaning_steps",
    {
        "normalise": "camelid.data.normalise:Normalise",
        "language": "camelid.data.language:Language",
        "gopher_quality": "camelid.data.quality:GopherQuality",
        "gopher_repetition": "camelid.data.quality:GopherRepetition",
        "c4": "camelid.data.quality:C4",
        "exact_dedup": "camelid.data.dedup:ExactDedup",
        "near_dedup": "camelid.data.dedup:NearDedup",
        "decontaminate": "camelid.data.decontaminate:Decontaminate",
    },
)


def parse_step(settings: Mapping[str, Any] | StepRecipe) -> StepRecipe:
    """The step that a table of a recipe describes.

    Raises:
        RecipeError: the table names no step, has an unknown key, or an impossible value.
        NotFoundError: there is no such step.
    """
    if isinstance(settings, StepRecipe):
        return settings
    name = settings.get("step") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        raise RecipeError(
            "a cleaning step has no name",
            where="steps",
            hint=f'each [[steps]] table begins with step = "…", one of {", ".join(STEPS.names())}',
        )
    return validated(STEPS.load(name), settings, f"the step '{name}'")
