"""The tokenizer's interface: text to ids and back, the same for every vocabulary format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from camelid.base.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class SpecialTokens:
    """The control tokens of a vocabulary and what the model's makers use them for."""

    ids: Mapping[str, int] = field(default_factory=dict)
    """Every control token's text and id; none of these ids comes from ordinary text, except `unk` where a vocabulary
    without byte tokens has no other way to write a character."""
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    add_bos: bool = False
    """Whether a plain text prompt of this model starts with `bos`."""

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The values of `ids`."""
        return frozenset(self.ids.values())


class Tokenizer(ABC):
    """Text to token ids and back.

    tokenizer = camelid.load_tokenizer("path/to/folder-or-file")
    ids = tokenizer.encode("Hello world")
    assert tokenizer.decode(ids) == "Hello world"
    """

    special: SpecialTokens
    dummy_space_ids: frozenset[int] = frozenset()
    """Tokens that start with the space which SentencePiece puts before a text: as the first of a text they lose it."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest id, control tokens included."""

    @abstractmethod
    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: any string; lone surrogates are replaced by U+FFFD.
            bos: put the begin-of-sequence id first.
            eos: put the end-of-sequence id last.
            allow_special: read control tokens spelt out in the text as such; otherwise they are ordinary characters.

        Raises:
            TokenizerError: `bos` or `eos` is asked for and the vocabulary has none.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for inside a text; a control token's are its spelling.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD, one for each maximal part of a character.

        Args:
            ids: token ids.
            skip_special: leave control tokens out instead of spelling them.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        return self.stream(skip_special=skip_special).push_all(ids)

    def stream(self, *, skip_special: bool = True, continuing: bool = False) -> StreamDecoder:
        """A decoder that takes ids one at a time and gives out only whole characters.

        Args:
            skip_special: leave control tokens out instead of spelling them.
            continuing: the ids go on from a text (a prompt), so that a SentencePiece token's leading space stays.
        """
        return StreamDecoder(self, skip_special=skip_special, continuing=continuing)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer(folder)` and transformers read."""

    def framed(self, ids: list[int], *, bos: bool, eos: bool) -> list[int]:
        """The ids with the begin- and end-of-sequence ids that were asked for.

        Raises:
            TokenizerError: the vocabulary has none.
        """
        for name, wanted, token_id in (("begin", bos, self.special.bos), ("end", eos, self.special.eos)):
            if wanted and token_id is None:
                raise TokenizerError(f"this vocabulary has no {name}-of-sequence token")
        first = [self.special.bos] if bos and self.special.bos is not None else []
        last = [self.special.eos] if eos and self.special.eos is not None else []
        return first + ids + last if first or last else ids


class StreamDecoder:
    """Turns ids that arrive one at a time into text; what it gives out, joined, is what `decode` gives at once.

    decoder = tokenizer.stream()
    for token_id in ids:
        print(decoder.push(token_id), end="")
    print(decoder.flush())
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool, continuing: bool = False) -> None:
        self._tokenizer = tokenizer
        self._control = tokenizer.special.control_ids
        self._skip_special = skip_special
        self._started = continuing
        self._utf8 = getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; empty while a character's bytes are still coming.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        return self._utf8.decode(self._bytes(token_id))

    def push_all(self, ids: Sequence[int]) -> str:
        """What `push` of every id and `flush` give, joined."""
        return self._utf8.decode(b"".join(map(self._bytes, ids)), final=True)

    def flush(self) -> str:
        """What is left when no more ids come: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, token_id: int) -> bytes:
        data = self._tokenizer.token_bytes(token_id)
        if token_id in self._control:
            return b"" if self._skip_special else data
        if not self._started:
            self._started = True
            return data[1:] if token_id in self._tokenizer.dummy_space_ids else data
        return data


def scalar_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD, so that it has a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
