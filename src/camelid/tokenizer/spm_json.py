"""A SentencePiece vocabulary as tokenizer.json, where both are known to give the same ids."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Final

from camelid.tokenizer.added_tokens import AddedToken
from camelid.tokenizer.byte_pairs import added_tokens_json, bos_template
from camelid.tokenizer.spm_model import BPE, Piece, PieceType, SentencePieceModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from camelid.tokenizer.base import SpecialTokens

_SPACE: Final = "▁"


def sentencepiece_json(model: SentencePieceModel, special: SpecialTokens) -> str | None:
    """The tokenizer.json of a vocabulary of Llama's kind; None of any other, which has no exact counterpart.

    SentencePiece joins the adjacent pair whose concatenation has the highest score, the leftmost of equal ones;
    `tokenizers` follows a list of pairs. With every cut of every piece in the list, by falling score, they agree, as
    long as no two pieces share a score. Llama's pieces of blanks do share one: see `_blank_merges`.
    """
    plain = model.model_type == BPE and model.byte_fallback and model.escape_whitespaces
    if not plain or model.character_map or model.remove_extra_whitespaces or model.treat_whitespace_as_suffix:
        return None
    if any(piece.type in (PieceType.USER_DEFINED, PieceType.UNUSED) for piece in model.pieces):
        return None
    merges = _merges(model.pieces)
    if merges is None:
        return None
    added = [AddedToken(text, token_id, special=True) for text, token_id in special.ids.items()]
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if model.add_dummy_prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_dummy_prefix else []
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens_json(added),
            "normalizer": {"type": "Sequence", "normalizers": [*prefix, replace]},
            "pre_tokenizer": None,
            "post_processor": bos_template(special),
            "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": model.pieces[model.unk_id].text,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {piece.text: token_id for token_id, piece in enumerate(model.pieces)},
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]] | None:
    """Every pair that makes a piece, the highest score first; None if equal scores leave the order open."""
    normal = {piece.text: piece.score for piece in pieces if piece.type == PieceType.NORMAL}
    merges: list[tuple[str, str]] = []
    by_score = sorted((text for text in normal if len(text) > 1), key=normal.__getitem__, reverse=True)
    for _, group in groupby(by_score, key=normal.__getitem__):
        texts = list(group)
        if len(texts) == 1:
            merges += _cuts(texts[0], normal)
        elif all(set(text) == {_SPACE} for text in texts):
            merges += _blank_merges(texts, normal)
        else:
            return None
    return merges


def _cuts(text: str, known: Mapping[str, float]) -> list[tuple[str, str]]:
    cuts = ((text[:i], text[i:]) for i in range(1, len(text)))
    return [(left, right) for left, right in cuts if left in known and right in known]


def _blank_merges(texts: Sequence[str], known: Mapping[str, float]) -> list[tuple[str, str]]:
    """Merges of runs of blanks that have equal scores, which SentencePiece therefore merges from left to right.

    A list does the same if it lengthens the longest run first: only one blank at a time is ever joined to it.
    """
    longest_first = sorted(texts, key=len, reverse=True)
    return [(text[:-1], _SPACE) for text in longest_first if text[:-1] in known and _SPACE in known]
