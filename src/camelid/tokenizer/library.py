"""Any tokenizer.json on the `tokenizers` library: slower than tiktoken, and right for every kind of vocabulary."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import tokenizers

from camelid.base.errors import TokenizerError
from camelid.tokenizer.base import StreamDecoder, Tokenizer, scalar_text
from camelid.tokenizer.byte_pairs import spelled_bytes
from camelid.tokenizer.huggingface import save_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from camelid.tokenizer.base import SpecialTokens

SPACE: Final = "▁"
"""U+2581, SentencePiece's space."""

BYTE_PIECE: Final = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's spelling of a token that is one byte."""


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json as `tokenizers` runs it, without its truncation and padding.

    Decoding is by bytes, like every other tokenizer's, where the file's decoder is ByteLevel or SentencePiece's. Any
    other decoder may change earlier text when more comes (WordPiece's does): then a stream gives its text at the end.
    """

    def __init__(self, text: str, special: SpecialTokens, where: object) -> None:
        self.special = special
        self._text = text
        self._library = open_library(text, special, where)
        self._decoder = _ByteDecoder.of(json.loads(text).get("decoder"))
        self._tokens = {token_id: token for token, token_id in self._library.get_vocab().items()}
        if self._decoder is not None and self._decoder.drops_space:
            spaced = {token_id for token_id, token in self._tokens.items() if token.startswith(SPACE)}
            self.dummy_space_ids = frozenset(spaced - special.control_ids)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id that the file gives a token."""
        return max(self._tokens) + 1

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Token ids, as the library gives them without its template (`add_special_tokens=False`)."""
        library = self._library_with_special if allow_special else self._library
        ids: list[int] = library.encode(scalar_text(text), add_special_tokens=False).ids
        return self.framed(ids, bos=bos, eos=eos)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the file's decoder makes of a token; its spelling where that depends on other tokens."""
        token = self._tokens.get(token_id)
        if token is None:
            raise TokenizerError(f"there is no token {token_id} in this vocabulary of {self.vocab_size}")
        if self._decoder is None or token_id in self.special.control_ids:
            return token.encode()
        return self._decoder.token_bytes(token)

    def stream(self, *, skip_special: bool = True, continuing: bool = False) -> StreamDecoder:
        """A decoder for ids one at a time; see the class for the files that get their text only at the end."""
        if self._decoder is None:
            return _AtTheEnd(self, self._library, skip_special=skip_special)
        return super().stream(skip_special=skip_special, continuing=continuing)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json as it was read, and tokenizer_config.json."""
        save_files(folder, self.special, {"tokenizer.json": self._text.encode()})

    @property
    def definition(self) -> str:
        """The text of the tokenizer.json."""
        return self._text

    @cached_property
    def _library_with_special(self) -> tokenizers.Tokenizer:
        library = open_library(self._text, self.special, "tokenizer.json")
        library.encode_special_tokens = False
        return library


def open_library(text: str, special: SpecialTokens, where: object) -> tokenizers.Tokenizer:
    """The library's tokenizer; it neither cuts nor pads, and takes control tokens' spellings for ordinary text.

    Raises:
        TokenizerError: the library refuses the file, or numbers its added tokens otherwise.
    """
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises no narrower class, and where it panics no Exception at all
        raise TokenizerError(f"the tokenizers library cannot read this: {error}", where=where) from error
    library.no_truncation()
    library.no_padding()
    added = {token.content for token in library.get_added_tokens_decoder().values()}
    library.add_special_tokens([name for name in special.ids if name not in added])
    for name, token_id in special.ids.items():
        if library.token_to_id(name) != token_id:
            raise TokenizerError(
                f"the file gives {name!r} the id {token_id}, the tokenizers library {library.token_to_id(name)}",
                where=where,
                hint="list the token in model.vocab too, or give the added tokens the ids that follow the vocabulary's",
            )
    library.encode_special_tokens = True
    return library


class _AtTheEnd(StreamDecoder):
    def __init__(self, tokenizer: Tokenizer, library: tokenizers.Tokenizer, *, skip_special: bool) -> None:
        super().__init__(tokenizer, skip_special=skip_special)
        self._library = library
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        self._tokenizer.token_bytes(token_id)
        self._ids.append(token_id)
        return ""

    def push_all(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            self.push(token_id)
        return self.flush()

    def flush(self) -> str:
        text: str = self._library.decode(self._ids, skip_special_tokens=self._skip_special)
        self._ids = []
        return text


@dataclass(frozen=True)
class _ByteDecoder:
    """A tokenizer.json's decoder that turns each token into bytes by itself."""

    byte_level: bool
    byte_pieces: bool = False
    drops_space: bool = False

    @classmethod
    def of(cls, decoder: Mapping[str, Any] | None) -> _ByteDecoder | None:
        """None if what a token stands for depends on the others."""
        steps: Sequence[Mapping[str, Any]] = []
        if decoder:
            steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
        types = [step.get("type") for step in steps]
        if types == ["ByteLevel"]:
            return cls(byte_level=True)
        if types == ["Metaspace"] and steps[0].get("replacement") == SPACE:
            prepends = steps[0].get("prepend_scheme", "always") != "never" and steps[0].get("add_prefix_space", True)
            return cls(byte_level=False, drops_space=bool(prepends))
        if not steps or types[0] != "Replace" or not set(types[1:]) <= {"ByteFallback", "Fuse", "Strip"}:
            return None
        if steps[0].get("pattern") != {"String": SPACE} or steps[0].get("content") != " ":
            return None
        strips = [(step.get("content"), step.get("start"), step.get("stop")) for step in steps if "start" in step]
        if strips not in ([], [(" ", 1, 0)]):
            return None
        return cls(byte_level=False, byte_pieces="ByteFallback" in types, drops_space=bool(strips))

    def token_bytes(self, token: str) -> bytes:
        if self.byte_level:
            return spelled_bytes(token)
        if self.byte_pieces and (match := BYTE_PIECE.fullmatch(token)):
            return bytes.fromhex(match[1])
        return token.replace(SPACE, " ").encode()
