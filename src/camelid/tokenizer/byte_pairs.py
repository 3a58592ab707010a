"""A byte-level BPE as tokenizer.json writes it: bytes spelled as characters, a vocabulary, a list of merges."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from camelid.tokenizer.split_patterns import pre_tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from camelid.tokenizer.added_tokens import AddedToken
    from camelid.tokenizer.base import SpecialTokens
    from camelid.tokenizer.split_patterns import Cuts


def _alphabet() -> str:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_ALPHABET: Final = _alphabet()
"""Character b spells byte b: printable Latin-1 as itself, the others from U+0100 on (GPT-2, encoder.py)."""

_BYTE_OF_CHARACTER: Final = codecs.charmap_build(BYTE_ALPHABET)


def spell(data: bytes) -> str:
    """Bytes in the byte alphabet."""
    return codecs.charmap_decode(data, "strict", BYTE_ALPHABET)[0]


def unspell(token: str) -> bytes:
    """The bytes that a token of the byte alphabet spells.

    Raises:
        UnicodeEncodeError: a character is not of the alphabet.
    """
    return codecs.charmap_encode(token, "strict", _BYTE_OF_CHARACTER)[0]


def spelled_bytes(token: str) -> bytes:
    """The bytes of a token in the byte alphabet; of any other text, its UTF-8."""
    try:
        return unspell(token)
    except UnicodeEncodeError:
        return token.encode()


@dataclass(frozen=True)
class BytePairModel:
    """Everything that decides a byte-level BPE's ids."""

    vocab: Mapping[str, int]
    """Token, in the byte alphabet, → id."""
    merges: Sequence[tuple[str, str]]
    """Pairs in the order of their priority."""
    cuts: Cuts
    """Cut the text."""
    ignore_merges: bool = False
    """A whole cut that is in `vocab` is taken as it is, even if no merges lead to it."""
    added: Sequence[AddedToken] = field(default_factory=tuple)


def every_cut(tokens: Sequence[bytes]) -> list[tuple[str, str]]:
    """The merges that make `tokens`, given in order of rank: every way to cut each in two."""
    known = set(tokens)
    merges = []
    for token in tokens:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [(spell(left), spell(right)) for left, right in cuts if left in known and right in known]
    return merges


def tokenizer_json(model: BytePairModel, special: SpecialTokens) -> str:
    """The tokenizer.json of a model, read alike by `tokenizers`, transformers and `load_tokenizer`."""
    vocab = dict(model.vocab)
    ids_after_it = [token.id for token in sorted(model.added, key=_id)] == list(
        range(len(vocab), len(vocab) + len(model.added))
    )
    if not ids_after_it:
        # `tokenizers` numbers added tokens itself, after the vocabulary, unless they are in it.
        vocab |= {token.content: token.id for token in model.added}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens_json(model.added),
            "normalizer": None,
            "pre_tokenizer": pre_tokenizer_json(model.cuts),
            "post_processor": bos_template(special) or _BYTE_LEVEL,
            "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": model.ignore_merges,
                "vocab": vocab,
                "merges": [list(pair) for pair in model.merges],
            },
        },
        ensure_ascii=False,
    )


_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def _id(token: AddedToken) -> int:
    return token.id


def added_tokens_json(added: Sequence[AddedToken]) -> list[dict[str, Any]]:
    """tokenizer.json's `added_tokens`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": token.id, "content": token.content, **plain, "special": token.special}
        for token in sorted(added, key=_id)
    ]


def bos_template(special: SpecialTokens) -> dict[str, Any] | None:
    """tokenizer.json's `post_processor` that puts the begin-of-sequence token first; None where nothing is put."""
    name = next((text for text, token_id in special.ids.items() if token_id == special.bos), None)
    if not special.add_bos or name is None:
        return None
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            bos,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {name: {"id": name, "ids": [special.bos], "tokens": [name]}},
    }
