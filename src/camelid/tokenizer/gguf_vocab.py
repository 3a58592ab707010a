"""The vocabulary inside a GGUF file: the `tokenizer.ggml.*` keys (ggml docs/gguf.md)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from camelid.base.errors import TokenizerError, did_you_mean
from camelid.tokenizer.added_tokens import AddedToken
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import BytePairModel, tokenizer_json
from camelid.tokenizer.gguf_pre import GGUF_PRE
from camelid.tokenizer.hf_json import on_library, on_tiktoken
from camelid.tokenizer.spm_model import Piece, PieceType, SentencePieceModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from camelid.tokenizer.base import Tokenizer

_NONE: Final = 2**32 - 1
"""-1 as the file's unsigned type holds it."""

_LARGEST_SCORE: Final = (2 - 2**-23) * 2.0**127
"""Of the 32-bit numbers that SentencePiece has for scores."""

_Element = TypeVar("_Element", str, int, float)
_ELEMENTS: Final[Mapping[type, str]] = {str: "texts", int: "whole numbers", float: "numbers with a point"}


def from_gguf_metadata(metadata: Mapping[str, Any], *, where: object = "the GGUF metadata") -> Tokenizer:
    """The tokenizer that a GGUF file carries.

    Args:
        metadata: the file's metadata; arrays may be lists or numpy arrays.
        where: names the file in errors.

    Raises:
        TokenizerError: keys are missing or contradict each other, or the pre-tokenizer is not one that is known.
    """
    vocabulary = _Vocabulary(metadata, where)
    model = vocabulary.text("model")
    if model == "llama":
        return _sentencepiece(vocabulary)
    if model == "gpt2":
        return _byte_pairs(vocabulary)
    what = "there is no tokenizer in it" if model is None else f"the tokenizer model '{model}' is not supported"
    raise TokenizerError(what, where=where, hint="'llama' (SentencePiece) and 'gpt2' (byte-level BPE) are")


def _byte_pairs(vocabulary: _Vocabulary) -> Tokenizer:
    name = vocabulary.text("pre")
    if name is None or name not in GGUF_PRE:
        what = (
            "the file does not name its pre-tokenizer" if name is None else f"the pre-tokenizer '{name}' is not known"
        )
        raise TokenizerError(
            f"{what}, so texts would be cut by guesswork",
            where=f"{vocabulary.where}, tokenizer.ggml.pre",
            hint="convert the model again with a recent converter" if name is None else did_you_mean(name, GGUF_PRE),
        )
    pre = GGUF_PRE[name]
    tokens = vocabulary.tokens()
    types = vocabulary.types(len(tokens))
    # Ids that only fill up the vocabulary are like control tokens: nothing in a text leads to them.
    control = [i for i, kind in enumerate(types) if kind in (PieceType.CONTROL, PieceType.UNUSED, PieceType.UNKNOWN)]
    written = [i for i, kind in enumerate(types) if kind == PieceType.USER_DEFINED]
    added = [AddedToken(tokens[i], i, special=True) for i in control]
    added += [AddedToken(tokens[i], i, special=False) for i in written]
    others = set(range(len(tokens))).difference(control, written)
    special = vocabulary.special(tokens, control, add_bos=pre.add_bos)
    model = BytePairModel(
        vocab={token: i for i, token in enumerate(tokens) if i in others},
        merges=vocabulary.merges(),
        cuts=pre.cuts,
        ignore_merges=pre.ignore_merges,
        added=added,
    )
    tokenizer = on_tiktoken(model, special, lambda: tokenizer_json(model, special))
    return tokenizer or on_library(tokenizer_json(model, special), special, vocabulary.where)


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    from camelid.tokenizer.spm import SentencePieceTokenizer

    tokens = vocabulary.tokens()
    types = vocabulary.types(len(tokens))
    scores = vocabulary.array("scores", float)
    if len(scores) != len(tokens):
        raise TokenizerError(f"{len(scores)} scores do not fit {len(tokens)} tokens", where=vocabulary.where)
    if not all(abs(score) <= _LARGEST_SCORE for score in scores):
        raise TokenizerError("tokenizer.ggml.scores holds what is no 32-bit number", where=vocabulary.where)
    special = vocabulary.special(tokens, [], add_bos=True, bos=1, eos=2, unk=0)
    unk = 0 if special.unk is None else special.unk
    # SentencePiece wants exactly one unknown piece; some converters write it as a control token.
    types = [PieceType.CONTROL if kind == PieceType.UNKNOWN else kind for kind in types]
    types[unk] = PieceType.UNKNOWN
    model = SentencePieceModel(
        pieces=tuple(map(Piece, tokens, scores, types)),
        byte_fallback=PieceType.BYTE in types,
        unk_id=unk,
        bos_id=-1 if special.bos is None else special.bos,
        eos_id=-1 if special.eos is None else special.eos,
        pad_id=-1 if special.pad is None else special.pad,
        add_dummy_prefix=vocabulary.flag("add_space_prefix", default=True),
        remove_extra_whitespaces=vocabulary.flag("remove_extra_whitespaces", default=False),
    )
    return SentencePieceTokenizer(model, add_bos=special.add_bos, where=vocabulary.where)


class _Vocabulary:
    """The keys, each checked when it is read."""

    def __init__(self, metadata: Mapping[str, Any], where: object) -> None:
        self.metadata = metadata
        self.where = where

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}", default)

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise TokenizerError(f"tokenizer.ggml.{name} is no text", where=self.where)
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, int):
            raise TokenizerError(f"tokenizer.ggml.{name} is neither true nor false", where=self.where)
        return bool(value)

    def array(self, name: str, kind: type[_Element]) -> list[_Element]:
        value = self.get(name)
        if value is None or isinstance(value, (str, int, float)):
            raise TokenizerError(f"tokenizer.ggml.{name} is no array", where=self.where)
        elements = list(value.tolist() if hasattr(value, "tolist") else value)
        if not all(isinstance(element, kind) for element in elements):
            raise TokenizerError(f"tokenizer.ggml.{name} holds not only {_ELEMENTS[kind]}", where=self.where)
        return elements

    def tokens(self) -> list[str]:
        tokens = self.array("tokens", str)
        if not tokens:
            raise TokenizerError("tokenizer.ggml.tokens is empty", where=self.where)
        if len(set(tokens)) < len(tokens):
            twice = next(token for token, count in Counter(tokens).items() if count > 1)
            raise TokenizerError(f"the token {twice!r} comes twice", where=f"{self.where}, tokenizer.ggml.tokens")
        return tokens

    def types(self, count: int) -> list[int]:
        if self.get("token_type") is None:
            return [int(PieceType.NORMAL)] * count
        types = self.array("token_type", int)
        if len(types) != count or not set(types) <= set(PieceType):
            raise TokenizerError("tokenizer.ggml.token_type does not fit the tokens", where=self.where)
        return types

    def merges(self) -> list[tuple[str, str]]:
        texts = self.array("merges", str)
        try:
            return [(left, right) for left, right in [text.split(" ") for text in texts]]
        except ValueError as error:
            broken = next(text for text in texts if text.count(" ") != 1)
            where = f"{self.where}, tokenizer.ggml.merges"
            raise TokenizerError(f"{broken!r} is no pair of tokens", where=where) from error

    def special(self, tokens: Sequence[str], control: Sequence[int], *, add_bos: bool, **ids: int) -> SpecialTokens:
        """The control tokens; `add_bos` and the ids by role are what holds where the file does not say."""
        keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
        roles = {role: self._id(f"{key}_token_id", ids.get(role), len(tokens)) for role, key in keys.items()}
        add_bos = self.flag("add_bos_token", default=add_bos) and roles["bos"] is not None
        return SpecialTokens(ids={tokens[i]: i for i in control}, add_bos=add_bos, **roles)

    def _id(self, name: str, default: int | None, count: int) -> int | None:
        token_id = self.get(name, default)
        if token_id is None:
            return None
        if isinstance(token_id, int) and token_id == _NONE:
            return None
        if not isinstance(token_id, int) or not 0 <= token_id < count:
            raise TokenizerError(
                f"tokenizer.ggml.{name} is {token_id!r}, outside of the vocabulary of {count}", where=self.where
            )
        return token_id
