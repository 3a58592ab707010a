"""`camelid tokenizer train`: a tokenizer learned from any corpus that camelid reads."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING

from pydantic import Field

from camelid.base.progress import progress
from camelid.base.recipe import Recipe
from camelid.data.sources import ReadOptions, documents_of, empty_corpus, find_files
from camelid.tokenizer.train import SPECIAL_TOKENS, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator


class TokenizerRecipe(Recipe):
    """The settings of `camelid tokenizer train`."""

    sources: tuple[str, ...] = Field(min_length=1)
    """Files, folders and globs to learn from."""
    text_field: str = "text"
    """The field of a JSON or parquet row that holds the text."""
    output: Path
    """The folder that gets tokenizer.json and tokenizer_config.json."""
    vocab_size: int = Field(default=32_768, gt=0, le=2**20)
    """Tokens in all: 256 bytes, merges and control tokens."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a pair must occur to be merged."""
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    """Control tokens; they get the last ids."""


def train_from_recipe(recipe: TokenizerRecipe) -> Path:
    """Train and save; the folder that was written.

    Raises:
        NotFoundError: a source matches no file.
        FormatError: a file is damaged, not UTF-8 or has a malformed row, or there is no text in all of them.
        TokenizerError: the settings allow no vocabulary.
    """
    tokenizer = train_tokenizer(
        _texts(recipe), recipe.vocab_size, special_tokens=recipe.special_tokens, min_frequency=recipe.min_frequency
    )
    if tokenizer.vocab_size < recipe.vocab_size:
        print(
            f"warning: the text gave only {tokenizer.vocab_size} of {recipe.vocab_size} tokens\n"
            "hint: more text, or a lower min_frequency, gives more",
            file=sys.stderr,
        )
    tokenizer.save(recipe.output)
    return recipe.output


def _texts(recipe: TokenizerRecipe) -> Iterator[str]:
    files = find_files(recipe.sources)
    found = False
    with progress("reading text", total=sum(file.path.stat().st_size for file in files)) as bar:
        for file in files:
            for document in documents_of(file, ReadOptions(text_field=recipe.text_field)):
                found = True
                yield document.text
            bar.advance(file.path.stat().st_size)
    if not found:
        raise empty_corpus(recipe.sources)
