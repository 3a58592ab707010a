"""Every error that camelid raises on purpose.

CamelidError
├── NotFoundError        a file, a folder, a model or a registered name that does not exist
├── FormatError          a file that is not what it says it is
├── ConfigError          a model configuration that cannot be honoured
├── RecipeError          a recipe, or an override of it, that is not valid
├── TokenizerError       a vocabulary that is broken or does not fit
├── ChatFormatError      a conversation or a template that cannot be rendered
├── ContextLengthError   more tokens than the context holds
├── SamplingError        sampling settings that no distribution satisfies
├── EngineError          the engine cannot go on with a request
├── TrainingError        training cannot go on
├── ResourceError        not enough memory or disk
└── NetworkError         something had to be fetched and could not be

A user's mistake raises one of these and the command line exits with code 2; a broken invariant is an assert.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class CamelidError(Exception):
    """What went wrong, where, and what to try next.

        raise NotFoundError("there is no model named 'smolm2'", hint="did you mean 'smollm2-135m-instruct'?")

    Args:
        what: one sentence without a final full stop.
        where: the file, offset, recipe key or request that the sentence is about.
        hint: the next thing to try.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        hint = f"\nhint: {self.hint}" if self.hint else ""
        return f"{self.what}{where}{hint}"


class NotFoundError(CamelidError):
    """A file, a folder, a model or a registered name that does not exist."""


class FormatError(CamelidError):
    """A file that is not what it says it is; `where` names the file and, if known, the byte offset."""


class ConfigError(CamelidError):
    """A model configuration that cannot be honoured without changing the mathematics."""


class RecipeError(CamelidError):
    """A recipe, or an override of it, that is not valid."""


class TokenizerError(CamelidError):
    """A vocabulary that is broken or does not fit the model."""


class ChatFormatError(CamelidError):
    """A conversation or a template that cannot be rendered."""


class ContextLengthError(CamelidError):
    """More tokens than the model's context holds."""


class SamplingError(CamelidError):
    """Sampling settings that no distribution satisfies."""


class EngineError(CamelidError):
    """The engine cannot go on with a request."""


class TrainingError(CamelidError):
    """Training cannot go on: a loss or a gradient is not finite, or the data cannot be trained on."""


class ResourceError(CamelidError):
    """Not enough memory or disk for what was asked."""


class NetworkError(CamelidError):
    """Something had to be fetched and could not be."""


LISTED = 12
"""Known names that a hint lists when none is near."""


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known names, or lists the known ones if none is near; None if there are none."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    more = ", …" if len(names) > LISTED else ""
    return "known: " + ", ".join(names[:LISTED]) + more if names else None
