"""The recipe of `camelid run`: stages in order, each the recipe of another verb, each naming earlier ones' results.

    output = "runs/ladder"

    [stages.tokenizer]
    run = "tokenizer"
    sources = ["texts/*.txt"]

    [stages.data]
    run = "prepare"
    tokenizer = "{tokenizer}"
    clean.sources = ["texts"]

Every stage is validated when the recipe is loaded, so that a slip in the last one does not cost the first ones' hours.
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from camelid.base.errors import CamelidError, NotFoundError, RecipeError, did_you_mean
from camelid.base.recipe import Recipe, validated
from camelid.pipeline.kind import STAGES
from camelid.pipeline.references import NAME, references, substituted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from camelid.pipeline.kind import StageKind

RUN = "run"
"""The key of a stage's table that names its kind."""


class PipelineRecipe(Recipe):
    """A pipeline."""

    output: Path | None = None
    """The folder for the stages' folders; None: runs/ and the recipe's name."""
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name → `run` and the settings of the verb that it names, in the order in which they run."""

    @model_validator(mode="after")
    def _stages_are_valid(self) -> Self:
        self.parsed()
        return self

    def parsed(self) -> tuple[Stage, ...]:
        """The stages.

        Raises:
            RecipeError: a stage has an impossible name, an unknown key or an impossible value, or names a stage that
                does not come before it.
            NotFoundError: there is no such kind of stage.
        """
        return tuple(
            _stage(name, table, list(self.stages)[:number], self.stages)
            for number, (name, table) in enumerate(self.stages.items())
        )


@dataclass(frozen=True)
class Stage:
    """One stage as the recipe describes it."""

    name: str
    kind_name: str
    """A name in STAGES."""
    kind: StageKind[Any]
    settings: Mapping[str, Any]
    """As written, without `run`; references are not followed."""
    names: tuple[str, ...]
    """The stages that it refers to."""

    def recipe(self, result: Callable[[str], str], folder: Path | None = None) -> Recipe:
        """The recipe for its verb.

        Args:
            result: what stands in place of a reference to the stage of a name.
            folder: the stage's own; None while it has none.

        Raises:
            RecipeError: an unknown key, a wrong type or an impossible value.
        """
        settings = substituted(deepcopy(dict(self.settings)), result)
        for key, subfolder in self.kind.outputs.items():
            _set(settings, key, str(folder / subfolder) if folder else subfolder)
        schema: type[Recipe] = self.kind.schema
        return validated(schema, settings, f"the stage '{self.name}'", f"stages.{self.name}")


def _stage(name: str, table: Mapping[str, Any], earlier: list[str], every: Iterable[str]) -> Stage:
    where = f"stages.{name}"
    if not re.fullmatch(NAME, name):
        hint = "letters, digits, - and _, beginning with a letter: a folder is named after it"
        raise RecipeError(f"'{name}' cannot be the name of a stage", where=where, hint=hint)
    kind_name = table.get(RUN)
    if not isinstance(kind_name, str):
        what = "is missing" if kind_name is None else f"is no name: {kind_name!r}"
        raise RecipeError(f"'{where}.{RUN}' {what}", hint=f'write run = "…", one of {", ".join(STAGES.names())}')
    if kind_name not in STAGES.names():
        near = did_you_mean(kind_name, STAGES.names())
        raise NotFoundError(f"there is no kind of stage named '{kind_name}'", where=f"{where}.{RUN}", hint=near)
    settings = {key: value for key, value in table.items() if key != RUN}
    named = list(references(settings))
    for key, reference in named:
        _check_reference(f"{where}.{key}", reference, earlier, every)
    kind = STAGES.load(kind_name)()
    for key in kind.outputs:
        if _has(settings, key):
            hint = "take it out: every stage gets a folder of its own below the pipeline's output"
            raise RecipeError(f"'{where}.{key}' is chosen by the pipeline", hint=hint)
    stage = Stage(name, kind_name, kind, settings, tuple(dict.fromkeys(reference for _, reference in named)))
    try:
        kind.check(stage.recipe(lambda reference: f"{{{reference}}}"))
    except CamelidError as error:
        if where in str(error):
            raise
        # From inside the verb's own recipe, which does not know that it is a stage.
        inner = f", {error.where}" if error.where else ""
        raise type(error)(error.what, where=where + inner, hint=error.hint) from error
    return stage


def _check_reference(key: str, reference: str, earlier: list[str], every: Iterable[str]) -> None:
    if reference in earlier:
        return
    if reference in every:
        hint = f"known here: {', '.join(earlier)}" if earlier else "it is the first stage: there is nothing to name yet"
        raise RecipeError(f"'{key}' names the stage '{reference}', which does not come before it", hint=hint)
    near = did_you_mean(reference, earlier) or "it is the first stage: there is nothing to name yet"
    raise RecipeError(
        f"'{key}' names '{{{reference}}}', and there is no such stage",
        hint=f"{near}; to mean the text itself, write {{{{{reference}}}}}",
    )


def _has(settings: Mapping[str, Any], key: str) -> bool:
    first, _, rest = key.partition(".")
    if first not in settings:
        return False
    inner = settings[first]
    return isinstance(inner, dict) and _has(inner, rest) if rest else True


def _set(settings: dict[str, Any], key: str, value: str) -> None:
    """Set a dotted key; where a table on the way is missing or none, the schema says so better."""
    first, _, rest = key.partition(".")
    if not rest:
        settings[first] = value
    elif isinstance(inner := settings.get(first), dict):
        _set(inner, rest, value)
