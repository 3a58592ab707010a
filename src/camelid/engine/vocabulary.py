"""What the engine knows of text: the bytes of each token, given to it by whoever owns the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_COMPILED = 64
"""Banned texts and breakers whose tokens are kept at hand. Looking through 128,000 tokens takes some 10 ms."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes that each token adds to a text; empty for control tokens, which add none.

    Args:
        token_bytes: by token id; empty for control tokens. Shorter than the model's vocabulary where ids have no token.
        control: the control tokens, and how they are spelt.
        encode: text to ids, for grammars that want a text in the tokenizer's own pieces.
    """

    token_bytes: Sequence[bytes]
    control: Mapping[int, bytes]
    encode: Callable[[str], list[int]]

    def tokens_with(self, text: str) -> frozenset[int]:
        """Tokens that have this text inside."""
        return _tokens_with(self, text.encode("utf-8", "surrogatepass"))

    def banned(self, text: str) -> BannedText:
        """The rule that a text must not come up."""
        return _banned(self, text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class BannedText:
    """Which tokens would complete a text that must not come up."""

    vocabulary: Vocabulary
    text: bytes
    completing: tuple[tuple[int, ...], ...]
    """By how much of the text stands at the end of the reply: the tokens that start with the rest; at 0, those that
    have the whole text inside."""

    def completed_by(self, reply: Sequence[int]) -> list[int]:
        """The tokens that must not come next."""
        tail = b""
        for token in reversed(reply):
            tail = self._bytes(token) + tail
            if len(tail) >= len(self.text) - 1:
                break
        found = list(self.completing[0])
        for length in range(1, len(self.text)):
            if tail.endswith(self.text[:length]):
                found += self.completing[length]
        return found

    def _bytes(self, token: int) -> bytes:
        known = self.vocabulary.token_bytes
        return known[token] if token < len(known) else b""


@lru_cache(MAX_COMPILED)
def _tokens_with(vocabulary: Vocabulary, text: bytes) -> frozenset[int]:
    return frozenset(token for token, data in enumerate(vocabulary.token_bytes) if text in data)


@lru_cache(MAX_COMPILED)
def _banned(vocabulary: Vocabulary, text: bytes) -> BannedText:
    known = vocabulary.token_bytes
    inside = tuple(token for token, data in enumerate(known) if text in data)
    rests = [text[length:] for length in range(1, len(text))]
    starting = (tuple(token for token, data in enumerate(known) if data.startswith(rest)) for rest in rests)
    return BannedText(vocabulary, text, (inside, *starting))
