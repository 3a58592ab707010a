"""Bits per byte of held-out text: how well a model predicts, whatever its vocabulary.

Each document is scored from its first token on, after the begin-of-sequence token and without the end-of-sequence
token, so that every byte of the text is paid for exactly once:

    bits per byte = Σ −log₂ p(token | what is before it in its window) / Σ UTF-8 bytes

A document longer than the context is scored in windows that overlap. The standard error is that of a ratio of sums over
documents (Cochran 1977, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from camelid.base.errors import RecipeError
from camelid.base.files import sha256
from camelid.base.progress import progress
from camelid.base.recipe import Recipe
from camelid.evaluate.documents import first_id, from_shards, from_texts
from camelid.evaluate.ngram import MAX_ORDER, KneserNey
from camelid.evaluate.task import Measurement, Metric, Sample, Task
from camelid.evaluate.windows import windows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from camelid.data.shards import TokenShards
    from camelid.evaluate.documents import TokenDocument
    from camelid.evaluate.task import Subject
    from camelid.tokenizer import Tokenizer

    Floats = NDArray[np.float64]

DEFAULT_CONTEXT = 8192
"""A window of the 131,072 positions that some models have would take tens of gigabytes."""
EXCERPT_CHARACTERS = 300


class Baseline(Recipe):
    """The n-gram model that the model is held against; it learns from the train split of the same shards."""

    ngram: int = Field(default=5, ge=1, le=MAX_ORDER)
    """Its order."""
    max_tokens: int = Field(default=20_000_000, ge=1)
    """It learns from no more than the first so many; it takes about 100 bytes of memory for each."""


class BitsPerByte(Task):
    """Bits per byte of a split of token shards, or of text files."""

    task: Literal["bits_per_byte"] = "bits_per_byte"
    shards: Path | None = None
    """A folder of token shards, written with the model's own tokenizer."""
    split: Literal["train", "validation"] = "validation"
    texts: tuple[str, ...] = ()
    """In place of shards: files, folders and globs."""
    text_field: str = "text"
    """The field of JSON and parquet rows that holds the text."""
    separator: str | None = None
    """The line between two documents of a text file."""
    context: int | None = Field(default=None, ge=2)
    """Tokens that the model sees at once; None: as many as it was made for, but no more than DEFAULT_CONTEXT."""
    overlap: int | None = Field(default=None, ge=0)
    """Tokens that a window repeats of the one before; None: half of the context."""
    baseline: Baseline | None = None
    num_samples: int = Field(default=3, ge=0)
    """Documents shown from each end, the best and the worst predicted."""

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if (self.shards is None) == (not self.texts):
            raise ValueError("name either shards or texts")
        if self.baseline is not None and self.shards is None:
            raise ValueError("a baseline learns from the train split of shards: name shards")
        if self.baseline is not None and self.split == "train":
            raise ValueError("a baseline must not be measured on the train split that it learns from")
        return self

    def fingerprint(self) -> str:
        """A hash of the documents, and of those that the baseline learns from."""
        from camelid.data.manifest import read_manifest
        from camelid.data.sources import find_files

        if self.shards is None:
            return ":".join(sha256(file.path) for file in find_files(self.texts))
        manifest = read_manifest(self.shards)
        learnt_from = manifest.fingerprint("train") if self.baseline else ""
        return f"{manifest.fingerprint(self.split)}:{learnt_from}"

    def measure(self, subject: Subject) -> Measurement:
        """Score every document.

        Raises:
            NotFoundError: no shards, no such split, or a file is missing.
            FormatError: a file is damaged, or there is no text.
            TokenizerError: the shards are of another vocabulary, or texts cannot be begun.
            RecipeError: a context that the model does not have, or an overlap that fills it.
        """
        context, overlap = self._window(subject)
        documents = self._documents(subject.tokenizer)
        nats_D = self._score(subject, documents, context, overlap)
        bytes_D = np.array([document.num_bytes for document in documents], dtype=np.float64)
        bits = ratio("bits per byte", nats_D / math.log(2), bytes_D)
        num_tokens = sum(len(document.ids_N) - 1 for document in documents)
        notes = [
            f"{int(bytes_D.sum()):,} bytes in {num_tokens:,} tokens; windows of {context} tokens that overlap by "
            f"{overlap}; documents begin after {_spelling(subject.tokenizer)}"
        ]
        metrics = [bits]
        if self.baseline is not None:
            name = f"bits per byte of a {self.baseline.ngram}-gram model"
            baseline_nats_D, num_learnt, num_there = self._baseline_nats(subject.tokenizer, documents)
            metrics.append(ratio(name, baseline_nats_D / math.log(2), bytes_D))
            metrics.append(ratio(f"model / {self.baseline.ngram}-gram", nats_D, baseline_nats_D))
            notes.append(f"the {self.baseline.ngram}-gram model learnt from {num_learnt:,} of {num_there:,} tokens")
        samples = self._samples(subject.tokenizer, documents, nats_D / math.log(2) / bytes_D)
        return Measurement(metrics=tuple(metrics), num_items=len(documents), samples=samples, notes=tuple(notes))

    def _window(self, subject: Subject) -> tuple[int, int]:
        context = self.context or min(subject.context_length, DEFAULT_CONTEXT)
        if context > subject.context_length:
            raise RecipeError(
                f"the model was made for {subject.context_length} positions, not {context}",
                where=f"{self.label}: context",
                hint="leave the context out, or make it shorter",
            )
        overlap = context // 2 if self.overlap is None else self.overlap
        if overlap >= context:
            raise RecipeError(
                f"an overlap of {overlap} tokens leaves nothing of a context of {context}",
                where=f"{self.label}: overlap",
                hint="make it less than the context; half of it is usual",
            )
        return context, overlap

    def _documents(self, tokenizer: Tokenizer) -> list[TokenDocument]:
        from camelid.data.shards import TokenShards
        from camelid.data.sources import ReadOptions

        if self.shards is None:
            return from_texts(self.texts, ReadOptions(self.text_field, self.separator), tokenizer)
        return from_shards(TokenShards(self.shards, tokenizer, self.split), tokenizer)

    def _score(self, subject: Subject, documents: Sequence[TokenDocument], context: int, overlap: int) -> Floats:
        """Nats of each document."""
        windows = [list(windows_of(document.ids_N, context, overlap)) for document in documents]
        counts = [len(of_document) for of_document in windows]
        total = sum(window.num_scored for of_document in windows for window in of_document)
        nats_W = np.empty(sum(counts))
        with progress(self.label, total, "tokens") as bar:
            for number, nats_S in enumerate(subject.nats(window for of_document in windows for window in of_document)):
                nats_W[number] = nats_S.sum()
                bar.advance(len(nats_S))
        return _sums(nats_W, counts)

    def _baseline_nats(self, tokenizer: Tokenizer, documents: Sequence[TokenDocument]) -> tuple[Floats, int, int]:
        """Nats of each document by the baseline, the tokens it learnt from, and those that there were."""
        from camelid.data.shards import TokenShards

        assert self.shards is not None
        assert self.baseline is not None
        train = TokenShards(self.shards, tokenizer)
        num_learnt = min(train.num_tokens, self.baseline.max_tokens)
        ids_N, starts_D = _stream(train, num_learnt, first_id(tokenizer))
        model = KneserNey(ids_N, starts_D, vocab_size=train.manifest.vocab_size, order=self.baseline.ngram)
        lengths = np.array([len(document.ids_N) for document in documents], dtype=np.int64)
        test_N = np.concatenate([document.ids_N for document in documents])
        return _sums(model.nats(test_N, np.cumsum(lengths) - lengths), lengths.tolist()), num_learnt, train.num_tokens

    def _samples(
        self, tokenizer: Tokenizer, documents: Sequence[TokenDocument], bits_per_byte_D: Floats
    ) -> tuple[Sample, ...]:
        ranked = np.argsort(bits_per_byte_D, kind="stable").tolist()
        best, worst = ranked[: self.num_samples], ranked[max(self.num_samples, len(ranked) - self.num_samples) :]
        samples = []
        for number in (*best, *worst):
            document = documents[number]
            text = tokenizer.decode(document.ids_N[1 : 1 + EXCERPT_CHARACTERS].tolist(), skip_special=True)
            note = f"{bits_per_byte_D[number]:.3f} bits/byte, {document.num_bytes:,} bytes"
            samples.append(Sample(item=document.item, prompt=text[:EXCERPT_CHARACTERS], note=note))
        return tuple(samples)


def ratio(name: str, numerators_D: Floats, denominators_D: Floats) -> Metric:
    """Σ numerators / Σ denominators over documents, with its standard error (Cochran 1977, chapter 6)."""
    count, total = len(numerators_D), float(denominators_D.sum())
    value = float(numerators_D.sum()) / total
    error = None
    if count > 1:
        residuals_D = numerators_D - value * denominators_D
        error = math.sqrt(float(residuals_D @ residuals_D) * count / (count - 1)) / total
    return Metric(name=name, value=value, standard_error=error, num_items=count)


def _stream(shards: TokenShards, num_tokens: int, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents end to end and where they begin, each with the id that stands before a text."""
    ids_N, starts_D = shards.tokens(0, num_tokens), shards.document_starts(0, num_tokens)
    if shards.manifest.bos is not None:
        return ids_N, starts_D
    return np.insert(ids_N, starts_D, first), starts_D + np.arange(len(starts_D))


def _sums(values: Floats, lengths: Sequence[int]) -> Floats:
    """The sum of each stretch of values."""
    ends = np.cumsum([0, *lengths])
    return np.array([values[begin:end].sum() for begin, end in pairwise(ends)])


def _spelling(tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(first_id(tokenizer)).decode("utf-8", "replace")
