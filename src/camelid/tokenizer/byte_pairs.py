"""A byte-level BPE as tokenizer.json writes it: bytes spelled as characters, a vocabulary, a list of merges.

`rank_order` says whether merging by rank (tiktoken) gives the same tokens as the list of merges, for every text.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from camelid.tokenizer.split_patterns import pre_tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from camelid.tokenizer.added_tokens import AddedToken
    from camelid.tokenizer.base import SpecialTokens


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


@dataclass(frozen=True)
class BytePairModel:
    """Everything that decides a byte-level BPE's ids."""

    vocab: Mapping[str, int]
    """Token, in the byte alphabet, → id."""
    merges: Sequence[tuple[str, str]]
    """Pairs in the order of their priority."""
    pattern: str
    """Cuts the text; one of split_patterns."""
    ignore_merges: bool = False
    """A whole cut that is in `vocab` is taken as it is, even if no merges lead to it."""
    added: Sequence[AddedToken] = field(default_factory=tuple)


def rank_order(model: BytePairModel) -> list[str] | None:
    """The mergeable tokens in an order of rank that merges like the model's list, or None if that is not proven.

    Merging by rank joins the adjacent pair whose concatenation has the lowest rank, whatever its two halves. Inside a
    longer word the bytes of a token t go through the same steps as alone, as long as no merge crosses their ends; so t
    is only ever made from one pair, the last that merging t's own bytes alone arrives at. Hence both ways agree on
    every text if that pair is in the list for every token, and the list has these pairs in the order of rank. Proven
    here for the two shapes in which vocabularies come:

    * one merge for each token, its halves made earlier (GPT-2, SmolLM, anything that was trained): merging the token's
      bytes must arrive at that merge's two halves;
    * every way to cut a token in two is listed, token after token (Llama 3, converted from ranks): then the pair is
      in the list wherever it is. A token that no merge reaches must come from `ignore_merges`.
    """
    added = {token.content for token in model.added}
    single_bytes = [character for character in BYTE_ALPHABET if character in model.vocab]
    made = [left + right for left, right in model.merges]
    ranks = dict.fromkeys(made)
    symbols = ranks.keys() | set(single_bytes)
    if not symbols <= model.vocab.keys() or not added.isdisjoint(symbols):
        return None
    if not all(left in symbols and right in symbols for left, right in model.merges):
        return None
    if model.ignore_merges and not model.vocab.keys() <= symbols | added:
        return None
    one_each = len(ranks) == len(made) and _merges_are_reached(model.merges)
    if not one_each and not (model.ignore_merges and _every_cut_is_listed(model.merges, made, symbols)):
        return None
    return single_bytes + list(ranks)


def _merges_are_reached(merges: Sequence[tuple[str, str]]) -> bool:
    """Whether merging each token's bytes by the ranks below its own ends in the two halves of its only merge.

    The halves' own histories are known by induction, and run in order of rank. Walking both back in time, the last
    step first, shows every pair of symbols that met at the seam; none may be a token that would have been made then.
    On a tie the left pair is merged first.
    """
    rank: dict[str, int] = {}
    halves: dict[str, tuple[str, str]] = {}
    for index, (left, right) in enumerate(merges):
        if (len(left) > 1 and left not in rank) or (len(right) > 1 and right not in rank):
            return False
        x, y = left, right
        x_end = y_end = index
        x_start, y_start = rank.get(x, -1), rank.get(y, -1)
        while x_start >= 0 or y_start >= 0:
            if x_start > y_start:
                x_end = x_start
                x = halves[x][1]
                x_start = rank.get(x, -1)
            else:
                y_end = y_start
                y = halves[y][0]
                y_start = rank.get(y, -1)
            met = rank.get(x + y)
            if met is not None and met < x_end and met <= y_end:
                return False
        token = left + right
        rank[token] = index
        halves[token] = (left, right)
    return True


def _every_cut_is_listed(merges: Sequence[tuple[str, str]], made: Sequence[str], symbols: AbstractSet[str]) -> bool:
    """Whether the merges of a token (`made`) follow each other and are all its cuts into two symbols."""
    if len(set(merges)) != len(merges):
        return False
    groups = 0
    for token, group in groupby(made):
        groups += 1
        cuts = sum([token[:i] in symbols and token[i:] in symbols for i in range(1, len(token))])
        if cuts != sum(1 for _ in group):
            return False
    return groups == len(set(made))


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
            "pre_tokenizer": pre_tokenizer_json(model.pattern),
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
