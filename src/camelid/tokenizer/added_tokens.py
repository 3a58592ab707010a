"""Tokens that stand beside a vocabulary's merges: control tokens, and words that were added later."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class AddedToken:
    """One added token; a special one is a control token, any other is always read from text."""

    content: str
    id: int
    special: bool


class AddedTokens:
    """Finds added tokens in a text, the leftmost first and of those the longest.

    added = AddedTokens([AddedToken("<|eot_id|>", 128009, special=True)])
    list(added.split("Hi<|eot_id|>", allow_special=True)) == ["Hi", 128009]
    """

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self.tokens = tuple(tokens)
        self._ids = {token.content: token.id for token in tokens}

    def split(self, text: str, *, allow_special: bool) -> Iterator[str | int]:
        """The text's stretches of ordinary characters and the ids of the added tokens between them, in order."""
        pattern = self._any if allow_special else self._ordinary
        position = 0
        if pattern is not None:
            for match in pattern.finditer(text):
                if match.start() > position:
                    yield text[position : match.start()]
                yield self._ids[match.group()]
                position = match.end()
        if position < len(text):
            yield text[position:]

    @cached_property
    def _any(self) -> re.Pattern[str] | None:
        return _alternatives([token.content for token in self.tokens])

    @cached_property
    def _ordinary(self) -> re.Pattern[str] | None:
        return _alternatives([token.content for token in self.tokens if not token.special])


def _alternatives(contents: Sequence[str]) -> re.Pattern[str] | None:
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
