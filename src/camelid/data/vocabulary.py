"""What the data needs to know of a vocabulary: which one it is, and how many bytes of text each token stands for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from camelid.base.errors import TokenizerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from camelid.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary as data sees it (V ids)."""

    fingerprint: str
    """SHA-256 of every token's bytes in the order of ids, and of the control tokens' ids."""
    num_bytes_V: NDArray[np.int64]
    """UTF-8 bytes of text that a token stands for; 0 for control tokens, which are no text, and for unused ids."""
    num_first_bytes_V: NDArray[np.int64]
    """The same for a document's first token, which loses the space that SentencePiece puts before a text."""
    padding_id: int
    """The id that stands in padding."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer."""
        special = tokenizer.special
        digest = hashlib.sha256(repr(sorted(special.ids.items())).encode())
        num_bytes_V = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        for token_id in range(tokenizer.vocab_size):
            try:
                token = tokenizer.token_bytes(token_id)
            except TokenizerError:  # an id that no token has
                digest.update(b"-;")
                continue
            digest.update(b"%d:%b;" % (len(token), token))
            if token_id not in special.control_ids:
                num_bytes_V[token_id] = len(token)
        num_first_bytes_V = num_bytes_V.copy()
        num_first_bytes_V[list(tokenizer.dummy_space_ids)] -= 1
        candidates = (special.pad, special.eos, 0)
        padding_id = next(token_id for token_id in candidates if token_id is not None)
        return cls(digest.hexdigest(), num_bytes_V, num_first_bytes_V, padding_id)
