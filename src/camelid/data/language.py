"""Which language a text is in, by py3langid: naive Bayes over byte n-grams (Lui and Baldwin, ACL 2012).

On articles 21 to 30 of the Universal Declaration of Human Rights it names 92% of 1,610 articles in 117 languages
rightly, and nearly all in the most written ones (`benchmarks/language.py`). It does not tell Serbian in Latin letters,
Bosnian and Croatian apart, and often takes Indonesian for Malay.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from camelid.base.errors import RecipeError, ResourceError, did_you_mean
from camelid.data.steps import Dropped, StepRecipe

if TYPE_CHECKING:
    from camelid.data.document import Document


class Language(StepRecipe):
    """Keeps the documents in the languages named."""

    step: Literal["language"] = "language"
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes, such as `en`; ISO 639-3 where there is no such code."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.65
    """A less certain document is dropped; 0.65 is FineWeb's threshold (Penedo et al. 2024, section 3.2)."""
    sample_characters: Annotated[int, Field(ge=20)] = 2000
    """Characters looked at, from the middle of a longer text."""

    def build(self) -> LanguageFilter:
        """The filter."""
        return LanguageFilter(self)


class LanguageFilter:
    """The filter of `Language`.

    Raises:
        RecipeError: a language that the identifier does not know.
    """

    def __init__(self, settings: Language) -> None:
        known = languages()
        for code in settings.languages:
            if code not in known:
                hint = did_you_mean(code, known)
                raise RecipeError(f"unknown language '{code}'", where="the step 'language'", hint=hint)
        self.settings = settings
        self.wanted = frozenset(settings.languages)

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, if it is in one of the languages."""
        language, confidence = identify(_middle(document.text, self.settings.sample_characters))
        if language not in self.wanted:
            return Dropped("other_language", f"'{language}', confidence {confidence:.2f}")
        if confidence < self.settings.min_confidence:
            return Dropped("uncertain", f"'{language}', confidence {confidence:.2f}")
        return document


def identify(text: str) -> tuple[str, float]:
    """The most likely language's code and how likely it is, between 0 and 1."""
    return _identifier().classify(text)


def languages() -> list[str]:
    """The codes of all languages that can be told."""
    return sorted(_identifier().labels)


def _middle(text: str, length: int) -> str:
    start = max(0, (len(text) - length) // 2)
    return text[start : start + length]


class _Identifier(Protocol):
    @property
    def labels(self) -> list[str]: ...

    def classify(self, text: str) -> tuple[str, float]: ...


@cache
def _identifier() -> _Identifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as error:
        raise ResourceError(
            "telling languages apart needs the package py3langid",
            where="the step 'language'",
            hint="pip install py3langid, or leave the step out",
        ) from error
    identifier: _Identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return identifier
