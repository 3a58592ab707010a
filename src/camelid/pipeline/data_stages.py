"""The stages that make data: a vocabulary, and token shards."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from camelid.data import clean
from camelid.data.decontaminate import Decontaminate
from camelid.data.prepare import PrepareRecipe, prepare_shards
from camelid.data.sources import ReadOptions, read_documents
from camelid.data.train_tokenizer import TokenizerRecipe, train_from_recipe
from camelid.pipeline.estimate import Estimate, corpus_bytes, num_bytes_of, probe, timed
from camelid.pipeline.kind import StageKind
from camelid.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from camelid.data.clean import CleanRecipe
    from camelid.pipeline.estimate import Forecast
    from camelid.tokenizer import Tokenizer

SHARDS = "shards"
"""The folder in a "prepare" stage's own that is its result."""
CLEAN = "clean"
"""The folder beside it with the kept documents and the cleaning report."""
PROBE_VOCABULARY = 2048
"""Of the vocabulary that a probe learns where the one to be used is still to be made."""


class TokenizerStage(StageKind[TokenizerRecipe]):
    """Trains a vocabulary; the result is its folder."""

    outputs: ClassVar = {"output": "tokenizer"}
    schema = TokenizerRecipe

    def sources(self, recipe: TokenizerRecipe) -> Sequence[str]:
        """The texts."""
        return recipe.sources

    def run(self, recipe: TokenizerRecipe, folder: Path) -> Path:
        """Train it."""
        return train_from_recipe(recipe)

    def estimate(self, recipe: TokenizerRecipe, forecast: Forecast) -> Estimate:
        """Time by the rate of a vocabulary of the same size on the first of the text."""
        sample = probe(_texts(recipe.sources, ReadOptions(recipe.text_field)))
        seconds, _ = timed(lambda: train_tokenizer(sample, recipe.vocab_size, special_tokens=recipe.special_tokens))
        share = corpus_bytes(recipe.sources) / max(1, num_bytes_of(sample))
        return Estimate(seconds=seconds * max(1.0, share), note="by the rate of the first of the text")


class PrepareStage(StageKind[PrepareRecipe]):
    """Cleans a corpus and writes token shards; the result is the shards' folder."""

    outputs: ClassVar = {"output": SHARDS, "clean.output": CLEAN}
    free_to_change = frozenset({"clean.processes"})
    version = clean.VERSION
    schema = PrepareRecipe

    def sources(self, recipe: PrepareRecipe) -> Sequence[str]:
        """The corpus, the tokenizer, and what it is decontaminated against."""
        against = [name for step in recipe.clean.steps if isinstance(step, Decontaminate) for name in step.against]
        return [*recipe.clean.sources, str(recipe.tokenizer), *against]

    def run(self, recipe: PrepareRecipe, folder: Path) -> Path:
        """Clean and tokenize; what was done before a kill is not done again."""
        prepare_shards(recipe)
        return recipe.output

    def estimate(self, recipe: PrepareRecipe, forecast: Forecast) -> Estimate:
        """Time and tokens by what the first of the corpus comes to."""
        options = ReadOptions(recipe.clean.text_field, recipe.clean.separator)
        sample = probe(_texts(recipe.clean.sources, options))
        num_bytes = num_bytes_of(sample)
        judging, kept = timed(lambda: _kept(recipe.clean, sample))
        tokenizer = _tokenizer(recipe, sample, forecast)
        encoding, num_tokens = timed(lambda: sum(len(tokenizer.encode(text)) for text in kept))
        whole = corpus_bytes(recipe.clean.sources)
        share = whole / max(1, num_bytes)
        cores = 1 if whole < clean.SMALL_CORPUS_BYTES else os.cpu_count() or 1
        return Estimate(
            seconds=(judging + encoding) * share / cores,
            tokens=num_tokens * share,
            held_out=num_tokens * share * recipe.validation_share,
            note="by the first of the corpus; repeated documents are not looked for in it",
        )


def _texts(sources: Sequence[str], options: ReadOptions) -> Iterator[str]:
    return (document.text for document in read_documents(sources, options))


def _kept(recipe: CleanRecipe, texts: Sequence[str]) -> list[str]:
    """What the filters leave of the texts."""
    from camelid.data.document import Document
    from camelid.data.judge import Chunk, Judge

    documents = tuple(Document(text, str(number), "probe") for number, text in enumerate(texts))
    judgements = Judge(recipe.steps).judge_chunk(Chunk(0, documents))
    return [judgement.document.text for judgement in judgements if judgement.dropped is None]


def _tokenizer(recipe: PrepareRecipe, sample: Sequence[str], forecast: Forecast) -> Tokenizer:
    from camelid.tokenizer import load_tokenizer

    if forecast.of(recipe.tokenizer) is None:
        return load_tokenizer(recipe.tokenizer)
    return train_tokenizer(sample, PROBE_VOCABULARY)
