"""Rules that tell prose from boilerplate, lists and repetition; every threshold is a setting.

Gopher: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1.1
(quality) and table A1 (repetition). C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.2.
Their thresholds were set for English; the stop words and C4's end marks have to be changed for other languages. C4's
removal of three-sentence spans that occur twice in the corpus is not here: see the deduplicating steps.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from camelid.data.ngrams import combined, word_hashes
from camelid.data.steps import Dropped, StepRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from camelid.data.document import Document

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class GopherQuality(StepRecipe):
    """Length, word shape, bullets, ellipses and stop words (appendix A.1.1). Words stand between spaces."""

    step: Literal["gopher_quality"] = "gopher_quality"
    min_words: Count = 50
    max_words: Count = 100_000
    min_mean_word_length: Annotated[float, Field(ge=0)] = 3
    max_mean_word_length: Annotated[float, Field(ge=0)] = 10
    max_symbols_per_word: Annotated[float, Field(ge=0)] = 0.1
    """Of `#` and of ellipses, each by itself."""
    max_bullet_lines: Fraction = 0.9
    max_ellipsis_lines: Fraction = 0.3
    min_alphabetic_words: Fraction = 0.8
    """Words with at least one letter."""
    min_stop_words: Count = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    def build(self) -> GopherQualityFilter:
        """The filter."""
        return GopherQualityFilter(self)


class GopherQualityFilter:
    """The filter of `GopherQuality`."""

    def __init__(self, settings: GopherQuality) -> None:
        self.settings = settings
        self.stop_words = frozenset(settings.stop_words)

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, if it passes every rule."""
        return self._failed(document.text) or document

    def _failed(self, text: str) -> Dropped | None:
        limits, words, lines = self.settings, text.split(), _lines(text)
        if len(words) < limits.min_words:
            return Dropped("min_words", f"{len(words)} words")
        if len(words) > limits.max_words:
            return Dropped("max_words", f"{len(words)} words")
        if not words:
            return None
        mean = sum(map(len, words)) / len(words)
        if mean < limits.min_mean_word_length:
            return Dropped("min_mean_word_length", f"{mean:.1f} characters")
        if mean > limits.max_mean_word_length:
            return Dropped("max_mean_word_length", f"{mean:.1f} characters")
        ellipses = text.count("...") + text.count("…")
        for name, count in (("#", text.count("#")), ("…", ellipses)):
            if count / len(words) > limits.max_symbols_per_word:
                return Dropped("max_symbols_per_word", f"{count / len(words):.2f} '{name}' per word")
        bullets = sum(line.startswith(("•", "-", "*", "‣", "◦")) for line in lines) / len(lines)
        if bullets > limits.max_bullet_lines:
            return Dropped("max_bullet_lines", _percent(bullets, "of the lines"))
        trailing = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
        if trailing > limits.max_ellipsis_lines:
            return Dropped("max_ellipsis_lines", _percent(trailing, "of the lines"))
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
        if alphabetic < limits.min_alphabetic_words:
            return Dropped("min_alphabetic_words", _percent(alphabetic, "of the words"))
        present = self.stop_words.intersection(word.strip(".,;:!?\"'()“”").lower() for word in words)
        if len(present) < limits.min_stop_words:
            return Dropped("min_stop_words", f"{len(present)} stop words")
        return None


class GopherRepetition(StepRecipe):
    """Repeated lines, paragraphs and n-grams (table A1)."""

    step: Literal["gopher_repetition"] = "gopher_repetition"
    max_duplicate_lines: Fraction = 0.30
    max_duplicate_paragraphs: Fraction = 0.30
    max_duplicate_line_characters: Fraction = 0.20
    max_duplicate_paragraph_characters: Fraction = 0.20
    max_top_ngram_characters: tuple[Fraction, ...] = (0.20, 0.18, 0.16)
    """Characters within the most frequent 2-, 3- and 4-gram."""
    max_duplicate_ngram_characters: tuple[Fraction, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Characters within any repeated 5-, 6-, … 10-gram, each counted once."""

    def build(self) -> GopherRepetitionFilter:
        """The filter."""
        return GopherRepetitionFilter(self)


class GopherRepetitionFilter:
    """The filter of `GopherRepetition`."""

    def __init__(self, settings: GopherRepetition) -> None:
        self.settings = settings

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, if it passes every rule."""
        return self._failed(document.text) or document

    def _failed(self, text: str) -> Dropped | None:
        limits = self.settings
        paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
        for name, parts, max_count, max_characters in (
            ("line", _lines(text), limits.max_duplicate_lines, limits.max_duplicate_line_characters),
            ("paragraph", paragraphs, limits.max_duplicate_paragraphs, limits.max_duplicate_paragraph_characters),
        ):
            count, characters = _duplicates(parts)
            if count > max_count:
                return Dropped(f"max_duplicate_{name}s", _percent(count, f"of the {name}s"))
            if characters > max_characters:
                return Dropped(f"max_duplicate_{name}_characters", _percent(characters, "of the characters"))
        words = text.split()
        hashes_N = word_hashes(words)
        starts_N = np.concatenate(([0], np.cumsum([len(word) for word in words], dtype=np.int64)))
        num_characters = max(1, int(starts_N[-1]))
        for n, limit in enumerate(limits.max_top_ngram_characters, start=2):
            share = _top_ngram_characters(hashes_N, starts_N, n) / num_characters
            if share > limit:
                return Dropped("max_top_ngram_characters", _percent(share, f"in one {n}-gram"))
        for n, limit in enumerate(limits.max_duplicate_ngram_characters, start=5):
            share = _duplicate_ngram_characters(hashes_N, starts_N, n) / num_characters
            if share > limit:
                return Dropped("max_duplicate_ngram_characters", _percent(share, f"in repeated {n}-grams"))
        return None


class C4(StepRecipe):
    """Keeps the lines that are sentences, and the pages with enough of them."""

    step: Literal["c4"] = "c4"
    end_marks: tuple[str, ...] = (".", "!", "?", '"', "”")
    """A line that ends in none of them is taken out; with none named any line stays."""
    min_words_per_line: Count = 5
    min_sentences: Count = 3
    remove_lines_with: tuple[str, ...] = (
        "javascript",
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    drop_documents_with: tuple[str, ...] = ("lorem ipsum", "{")
    """Placeholder text, and the curly bracket that hints at code."""
    banned_words: tuple[str, ...] = ()
    """A document with any of these words is dropped; C4 took them from a public list of obscene words."""
    remove_citation_marks: bool = True
    """`[1]` and `[citation needed]`, as in Wikipedia."""

    def build(self) -> C4Filter:
        """The filter."""
        return C4Filter(self)


class C4Filter:
    """The filter of `C4`."""

    def __init__(self, settings: C4) -> None:
        self.settings = settings
        self.end_marks = tuple(settings.end_marks)
        self.banned = frozenset(word.lower() for word in settings.banned_words)

    def __call__(self, document: Document) -> Document | Dropped:
        """The document without the lines that are no sentences, if enough are left."""
        settings, lowered = self.settings, document.text.lower()
        for phrase in settings.drop_documents_with:
            if phrase.lower() in lowered:
                return Dropped("drop_documents_with", repr(phrase))
        if self.banned:
            found = self.banned.intersection(_WORD.findall(lowered))
            if found:
                return Dropped("banned_words", repr(min(found)))
        text = _CITATION.sub("", document.text) if settings.remove_citation_marks else document.text
        text = "\n".join(line for line in text.split("\n") if self._stays(line)).strip("\n")
        num_sentences = len(_SENTENCE_END.findall(text))
        if num_sentences < settings.min_sentences:
            return Dropped("min_sentences", f"{num_sentences} sentences in the lines that stay")
        return document.with_text(text)

    def _stays(self, line: str) -> bool:
        stripped, lowered = line.strip(), line.lower()
        if not stripped:
            return True
        return (
            (not self.end_marks or stripped.endswith(self.end_marks))
            and not stripped.endswith("...")
            and len(stripped.split()) >= self.settings.min_words_per_line
            and not any(phrase.lower() in lowered for phrase in self.settings.remove_lines_with)
        )


_WORD = re.compile(r"\w+")
_CITATION = re.compile(r"\[\d+\]|\[citation needed\]|\[edit\]")
_SENTENCE_END = re.compile(r"[.!?。！？؟।][\"'”’)]*(?=\s|$)")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _percent(share: float, of_what: str) -> str:
    return f"{100 * share:.0f}% {of_what}"


def _duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """Which share of the parts, and of their characters, repeats an earlier part."""
    repeated = [(count - 1, len(part)) for part, count in Counter(parts).items() if count > 1]
    characters = max(1, sum(map(len, parts)))
    return (
        sum(times for times, _ in repeated) / max(1, len(parts)),
        sum(times * length for times, length in repeated) / characters,
    )


def _top_ngram_characters(hashes_N: NDArray[np.uint64], starts_N: NDArray[np.int64], n: int) -> int:
    """Characters in all occurrences of the most frequent n-gram; word i begins at character `starts_N[i]`."""
    ngrams = combined(hashes_N, n)
    if not len(ngrams):
        return 0
    _, first, counts = np.unique(ngrams, return_index=True, return_counts=True)
    if counts.max() == 1:
        return 0
    # Of equally frequent ones the longest, so that the answer does not hang on the hashes' order.
    top = first[counts == counts.max()]
    return int(counts.max() * (starts_N[top + n] - starts_N[top]).max())


def _duplicate_ngram_characters(hashes_N: NDArray[np.uint64], starts_N: NDArray[np.int64], n: int) -> int:
    """Characters of the words that lie within an n-gram which has occurred before."""
    ngrams = combined(hashes_N, n)
    again = np.ones(len(ngrams), dtype=bool)
    again[np.unique(ngrams, return_index=True)[1]] = False
    # +1 where a repeated n-gram begins, -1 where it has ended: the running sum is how many cover a word.
    edges = np.zeros(len(hashes_N) + n + 1, dtype=np.int64)
    (places,) = np.nonzero(again)
    edges[places] += 1
    edges[places + n] -= 1
    covered_N = np.cumsum(edges)[: len(hashes_N)] > 0
    return int(np.diff(starts_N)[covered_N].sum())
