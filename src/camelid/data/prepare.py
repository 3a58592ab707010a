"""`camelid prepare`: from raw text to token shards that training reads, one recipe for both steps."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING

from pydantic import Field

from camelid.base.recipe import Recipe
from camelid.data.clean import CleanRecipe, kept_documents
from camelid.data.clean import prepare as clean
from camelid.data.shard_writer import TOKENS_PER_SHARD, write_shards
from camelid.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from camelid.data.manifest import Manifest
    from camelid.data.report import CleaningReport

TOKENIZER = "tokenizer"
"""The folder inside the shards' folder that holds the tokenizer they were made with."""


class PrepareRecipe(Recipe):
    """The settings of `camelid prepare`."""

    clean: CleanRecipe
    tokenizer: Path
    """A folder or file that `load_tokenizer` opens; a copy of it goes beside the shards."""
    output: Path
    """The folder for the shards."""
    tokens_per_shard: int = Field(default=TOKENS_PER_SHARD, ge=1)
    validation_share: float = Field(default=0.01, ge=0, lt=1)
    """The share of documents held out."""


def prepare_shards(recipe: PrepareRecipe) -> tuple[CleaningReport, Manifest]:
    """Clean a corpus and tokenize what is left; a call after a kill goes on where the first one was.

    Raises:
        CamelidError: what cleaning and `write_shards` raise.
    """
    tokenizer = load_tokenizer(recipe.tokenizer)
    report = clean(recipe.clean)
    manifest = write_shards(
        kept_documents(recipe.clean.output),
        tokenizer,
        recipe.output,
        tokens_per_shard=recipe.tokens_per_shard,
        validation_share=recipe.validation_share,
    )
    tokenizer.save(recipe.output / TOKENIZER)
    return report, manifest
