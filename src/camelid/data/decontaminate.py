"""Documents that hold parts of evaluation files, found by overlapping n-grams.

After Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C: n is the 5th percentile of the examples'
lengths in words, at least 8 and at most 13, for each evaluation file by itself; words are lower case without
punctuation. There the n-gram and 200 characters on either side are cut out and the rest goes on as several documents;
here the whole document is dropped, which loses more of a long one and leaves no torn sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from camelid.base.errors import RecipeError
from camelid.data.ngrams import ngram_hashes, words_of
from camelid.data.sources import find_files, read_records
from camelid.data.steps import Dropped, StepRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from camelid.data.document import Document


class Decontaminate(StepRecipe):
    """Drops a document that shares an n-gram with an evaluation file."""

    step: Literal["decontaminate"] = "decontaminate"
    against: Annotated[tuple[str, ...], Field(min_length=1)]
    """Evaluation files: names, folders or globs, in any format that a corpus may have. Every text in a row counts, also
    inside lists and tables, each as an example by itself."""
    min_ngram_words: Annotated[int, Field(ge=1)] = 8
    """A shorter example is left out: what is said in so few words is said elsewhere by chance."""
    max_ngram_words: Annotated[int, Field(ge=1)] = 13

    @model_validator(mode="after")
    def _ordered(self) -> Decontaminate:
        if self.min_ngram_words > self.max_ngram_words:
            raise ValueError("min_ngram_words is greater than max_ngram_words")
        return self

    def inputs(self) -> list[Path]:
        """The evaluation files."""
        return [file.path for file in find_files(self.against)]

    def build(self) -> ContaminationFilter:
        """The filter."""
        return ContaminationFilter(self)


class ContaminationFilter:
    """The filter of `Decontaminate`; the n-grams of all evaluation files lie in memory, 12 bytes each.

    Raises:
        RecipeError: no example in an evaluation file is long enough to be found.
    """

    def __init__(self, settings: Decontaminate) -> None:
        self.names = []
        found: dict[int, list[tuple[NDArray[np.uint64], int]]] = {}
        for number, file in enumerate(find_files(settings.against)):
            self.names.append(file.path.name)
            examples = [words for row in read_records(file) for text in _texts(row.values) if (words := words_of(text))]
            n, hashes = _ngrams(examples, settings)
            if not len(hashes):
                raise RecipeError(
                    f"no text in the evaluation file has {settings.min_ngram_words} words",
                    where=file.path,
                    hint="take the file out of `against`, or lower min_ngram_words",
                )
            found.setdefault(n, []).append((hashes, number))
        self.ngrams = {n: _merge(parts) for n, parts in sorted(found.items())}

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, if it shares no n-gram with an evaluation file."""
        words = words_of(document.text)
        for n, (known, file_of) in self.ngrams.items():
            hashes = ngram_hashes(words, n)
            places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            (hits,) = np.nonzero(known[places] == hashes)
            if len(hits):
                first = int(hits[0])
                name = self.names[file_of[places[first]]]
                return Dropped("contaminated", f"{name}: “{' '.join(words[first : first + n])}”")
        return document


def _ngrams(examples: Sequence[list[str]], settings: Decontaminate) -> tuple[int, NDArray[np.uint64]]:
    long_enough = [words for words in examples if len(words) >= settings.min_ngram_words]
    if not long_enough:
        return settings.min_ngram_words, np.empty(0, dtype=np.uint64)
    percentile = int(np.percentile([len(words) for words in long_enough], 5))
    n = min(percentile, settings.max_ngram_words)
    return n, np.unique(np.concatenate([ngram_hashes(words, n) for words in long_enough]))


def _merge(parts: Sequence[tuple[NDArray[np.uint64], int]]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """All hashes in order, and for each the number of a file that has it."""
    hashes = np.concatenate([hashes for hashes, _ in parts])
    files = np.concatenate([np.full(len(hashes), number, dtype=np.uint32) for hashes, number in parts])
    unique, first = np.unique(hashes, return_index=True)
    return unique, files[first]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
