"""Byte-level BPE on tiktoken, which merges by rank and is about five times as fast as `tokenizers`."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import tiktoken

from camelid.base.errors import TokenizerError
from camelid.tokenizer.added_tokens import AddedToken, AddedTokens
from camelid.tokenizer.base import Tokenizer, scalar_text
from camelid.tokenizer.huggingface import save_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import tokenizers

    from camelid.tokenizer.base import SpecialTokens

CHUNK_LENGTH: Final = 400_000
LONGEST_RUN: Final = 25_000
"""Characters in a chunk, and at most of blanks or of anything else at a stretch, that Llama's reference code hands to
tiktoken at once (Meta, llama3/tokenizer.py); tiktoken's stack overflows somewhere below a million blanks."""


class TiktokenBPE(Tokenizer):
    """A byte-level BPE that is known to merge by rank.

    Args:
        ranks: every mergeable token → id, in order of rank.
        pattern: cuts the text; one of `split_patterns.COMPLETE`.
        added: control tokens and other added ones.
        special: what the control tokens are used for.
        tokenizer_json: gives the same vocabulary as the text of a tokenizer.json.
        unused: further ids of the vocabulary and their bytes, which no text leads to.
        reference_chunks: cut huge texts where Llama's reference code does. Otherwise they stay whole, as `tokenizers`
            takes them, and the rare texts that tiktoken cannot take go through `tokenizers`: very long runs of blanks,
            and bytes that the vocabulary lacks (SmolLM2 has no U+0004, say), which both leave out of the ids.
    """

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        pattern: str,
        added: Sequence[AddedToken],
        special: SpecialTokens,
        tokenizer_json: Callable[[], str],
        *,
        unused: Mapping[int, bytes] | None = None,
        reference_chunks: bool = False,
    ) -> None:
        self.special = special
        self._tokenizer_json = tokenizer_json
        self._added = AddedTokens(added)
        self._reads_added = any(not token.special for token in added)
        self._reference_chunks = reference_chunks
        self._bytes = dict(unused or {})
        self._bytes |= zip(ranks.values(), ranks, strict=True)
        self._bytes |= {token.id: token.content.encode() for token in added}
        self._vocab_size = max(self._bytes) + 1
        self._missing = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        self._ids, encoder = _by_rank(ranks)
        self._encoding = tiktoken.Encoding("camelid", pat_str=pattern, mergeable_ranks=encoder, special_tokens={})

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, control tokens included."""
        return self._vocab_size

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids; of added tokens only those that are no control tokens are always read from text."""
        text = scalar_text(text)
        if not allow_special and not self._reads_added:
            return self.framed(self._encode_ordinary(text), bos=bos, eos=eos)
        ids: list[int] = []
        for part in self._added.split(text, allow_special=allow_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_ordinary(part)
        return self.framed(ids, bos=bos, eos=eos)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that were merged, or an added token's spelling."""
        try:
            return self._bytes[token_id]
        except KeyError:
            raise TokenizerError(f"there is no token {token_id} in this vocabulary of {self.vocab_size}") from None

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        save_files(folder, self.special, {"tokenizer.json": self._tokenizer_json().encode()})

    @property
    def definition(self) -> str:
        """The same vocabulary as the text of a tokenizer.json."""
        return self._tokenizer_json()

    def _encode_ordinary(self, text: str) -> list[int]:
        if self._reference_chunks:
            return [token_id for chunk in reference_chunks(text) for token_id in self._encoding.encode_ordinary(chunk)]
        if self._lacks_bytes_of(text) or has_long_run(text):
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
            return ids
        if self._ids is not None:
            return [self._ids[rank] for rank in self._encoding.encode_ordinary(text)]
        return self._encoding.encode_ordinary(text)

    def _lacks_bytes_of(self, text: str) -> bool:
        if not self._missing:
            return False
        data = text.encode()
        return len(data.translate(None, self._missing)) != len(data)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        from camelid.tokenizer.library import open_library

        return open_library(self._tokenizer_json(), self.special, "tokenizer.json")


def reference_chunks(text: str) -> Iterator[str]:
    """A text in the chunks in which Llama's reference code encodes it: see `CHUNK_LENGTH` and `LONGEST_RUN`."""
    for start in range(0, len(text), CHUNK_LENGTH):
        chunk = text[start : start + CHUNK_LENGTH]
        if has_long_run(chunk):
            yield from _cut_runs(chunk)
        else:
            yield chunk


def has_long_run(text: str) -> bool:
    """Whether more than `LONGEST_RUN` blanks, or more than that of anything else, may follow each other.

    Such a run covers one of the windows of half its length, so looking at those is enough; each is left at its first
    change from blank to not blank, which makes this nearly free on ordinary text. May be true of shorter runs.
    """
    window = LONGEST_RUN // 2
    for start in range(0, len(text) - window + 1, window):
        part = text[start : start + window]
        if part.isspace() or len(part.split(None, 1)[0]) == window:
            return True
    return False


def _cut_runs(text: str) -> Iterator[str]:
    """The text cut inside every run so that none is longer than `LONGEST_RUN`."""
    start = length = 0
    is_blank = text[0].isspace()
    for i, character in enumerate(text):
        if character.isspace() != is_blank:
            is_blank = not is_blank
            length = 1
            continue
        length += 1
        if length > LONGEST_RUN:
            yield text[start:i]
            start, length = i, 1
    yield text[start:]


def _by_rank(ranks: Mapping[bytes, int]) -> tuple[list[int] | None, dict[bytes, int]]:
    """tiktoken's dict from token to a number that grows with rank; and the ids of these numbers, if they are not ids.

    Only tokens of two bytes and more are ever compared.
    """
    merged = [token_id for token, token_id in ranks.items() if len(token) > 1]
    if all(a < b for a, b in pairwise(merged)):
        return None, dict(ranks)
    return list(ranks.values()), {token: rank for rank, token in enumerate(ranks)}
