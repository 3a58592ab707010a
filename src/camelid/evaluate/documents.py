"""Held-out text as token ids with its size in bytes, from files or from token shards.

Every document is the id that stands before texts, then the tokens of its text. That id is the vocabulary's begin of
sequence, or its end of sequence where it has none: what stood before, in the batches that the model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from camelid.base.errors import FormatError, TokenizerError
from camelid.data.sources import ReadOptions, read_documents
from camelid.tokenizer.base import scalar_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from camelid.data.shards import TokenShards
    from camelid.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenDocument:
    """One text to be scored (N tokens)."""

    item: str
    """Where it comes from."""
    ids_N: NDArray[np.int64]
    """The id before the text, then the text's own."""
    num_bytes: int
    """Of the text, in UTF-8."""


def first_id(tokenizer: Tokenizer) -> int:
    """The id that stands before a text.

    Raises:
        TokenizerError: the vocabulary has neither a begin- nor an end-of-sequence token.
    """
    special = tokenizer.special
    first = special.eos if special.bos is None else special.bos
    if first is None:
        raise TokenizerError(
            "this vocabulary has neither a begin- nor an end-of-sequence token to stand before a text",
            hint="without one the first token of a text cannot be scored",
        )
    return first


def from_texts(patterns: Sequence[str], options: ReadOptions, tokenizer: Tokenizer) -> list[TokenDocument]:
    """The documents of files, folders and globs; empty ones are left out.

    Raises:
        NotFoundError: a pattern matches no file.
        FormatError: a file is damaged (file and line are named), or there is no text in all of them.
        TokenizerError: as `first_id`.
    """
    first = first_id(tokenizer)
    documents = []
    for document in read_documents(patterns, options):
        text = scalar_text(document.text)
        if text:
            ids_N = np.array([first, *tokenizer.encode(text)], dtype=np.int64)
            documents.append(TokenDocument(document.id, ids_N, document.num_bytes))
    if not documents:
        raise FormatError("every document is empty", where=", ".join(patterns))
    return documents


def from_shards(shards: TokenShards, tokenizer: Tokenizer) -> list[TokenDocument]:
    """The documents of one split, without the end of sequence that each has in the shards."""
    first = first_id(tokenizer)
    has_first = shards.manifest.bos is not None
    documents = []
    for number in range(len(shards)):
        ids_N = shards.document(number)[:-1]
        ids_N = ids_N if has_first else np.concatenate(([first], ids_N))
        documents.append(TokenDocument(f"{shards.split} {number}", ids_N, shards.document_bytes(number)))
    return documents
