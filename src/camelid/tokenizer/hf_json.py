"""tokenizer.json: on tiktoken where that is proven to give the same ids, on the `tokenizers` library otherwise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import TokenizerError
from camelid.tokenizer.added_tokens import AddedToken
from camelid.tokenizer.byte_pairs import BytePairModel, spelled_bytes, unspell
from camelid.tokenizer.huggingface import special_tokens
from camelid.tokenizer.merge_proof import rank_order
from camelid.tokenizer.split_patterns import COMPLETE, read_cuts
from camelid.tokenizer.vocab_and_merges import definition_of, is_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from camelid.tokenizer.base import SpecialTokens, Tokenizer

_MAX_IDS: Final = 2**31
"""More than any vocabulary has; both libraries hold ids in 32 bits."""


def load_tokenizer_json(data: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with the control tokens that the files beside it declare.

    Args:
        data: the file's content; that of a vocab.json with a merges.txt beside it counts too.
        path: the file; its folder may hold tokenizer_config.json and the like.

    Raises:
        TokenizerError: the content is no tokenizer.json, or the files beside it contradict it.
    """
    try:
        text = data.decode()
        definition = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"this is no JSON: {error}", where=path) from error
    if is_vocabulary(definition, path):
        definition = definition_of(definition, path)
        text = json.dumps(definition, ensure_ascii=False)
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise TokenizerError(
            "this JSON is no tokenizer.json: it has no 'model'",
            where=path,
            hint="a vocab.json needs its merges.txt beside it",
        )
    try:
        added = _added_tokens(definition)
        vocab = _vocabulary(definition["model"])
        template_bos = _template_bos(definition.get("post_processor"))
        pairs = _byte_pairs(definition, vocab, added)
        every = {**vocab, **{token.content: token.id for token in added}}
        control = {token.content: token.id for token in added if token.special}
        special = special_tokens(path.parent, every, control, template_bos=template_bos)
        tokenizer = None if pairs is None else on_tiktoken(pairs, special, lambda: text)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"this tokenizer.json is broken: {error!r}", where=path) from error
    return tokenizer or on_library(text, special, path)


def byte_pair_model(text: str) -> BytePairModel | None:
    """What a tokenizer.json's text defines, if that is a plain byte-level BPE."""
    definition = json.loads(text)
    return _byte_pairs(definition, _vocabulary(definition["model"]), _added_tokens(definition))


def on_tiktoken(model: BytePairModel, special: SpecialTokens, tokenizer_json: Callable[[], str]) -> Tokenizer | None:
    """A byte-level BPE on tiktoken; None if that is not proven to give the same ids.

    Args:
        model: the vocabulary.
        special: its control tokens; one that `model.added` lacks becomes an added token.
        tokenizer_json: gives the same vocabulary as the text of a tokenizer.json.
    """
    if len(model.cuts) != 1 or model.cuts[0] not in COMPLETE:
        return None
    order = rank_order(model)
    known = {token.content for token in model.added}
    promoted = [AddedToken(text, token_id, special=True) for text, token_id in special.ids.items() if text not in known]
    if order is None or not {token.content for token in promoted}.isdisjoint(order):
        return None
    from camelid.tokenizer.tiktoken_bpe import TiktokenBPE

    ranks = {unspell(token): model.vocab[token] for token in order}
    if not ranks or len(set(ranks.values())) < len(ranks):
        return None
    unused = {model.vocab[token]: spelled_bytes(token) for token in model.vocab.keys() - set(order)}
    return TiktokenBPE(ranks, model.cuts[0], [*model.added, *promoted], special, tokenizer_json, unused=unused)


def on_library(text: str, special: SpecialTokens, where: object) -> Tokenizer:
    """The tokenizer of any tokenizer.json on the `tokenizers` library.

    Raises:
        TokenizerError: the library refuses the file.
    """
    from camelid.tokenizer.library import LibraryTokenizer

    return LibraryTokenizer(text, special, where)


def _added_tokens(definition: Mapping[str, Any]) -> list[AddedToken]:
    return [
        AddedToken(str(token["content"]), _checked_id(token["id"]), bool(token.get("special")))
        for token in definition.get("added_tokens") or []
    ]


def _vocabulary(model: Mapping[str, Any]) -> Mapping[str, int]:
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {piece: token_id for token_id, (piece, _score) in enumerate(vocab)}
    return {token: _checked_id(token_id) for token, token_id in vocab.items()}


def _checked_id(token_id: object) -> int:
    if type(token_id) is not int or not 0 <= token_id < _MAX_IDS:
        raise ValueError(f"{token_id!r} is no token id")
    return token_id


def _byte_pairs(
    definition: Mapping[str, Any], vocab: Mapping[str, int], added: Sequence[AddedToken]
) -> BytePairModel | None:
    """The file as a plain byte-level BPE; None if it is more than that."""
    model = definition["model"]
    cuts = read_cuts(definition.get("pre_tokenizer"))
    if cuts is None or definition.get("normalizer") or model.get("type", "BPE") != "BPE":
        return None
    if (definition.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    trimming = ("lstrip", "rstrip", "single_word")
    changes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if any(model.get(name) for name in changes):
        return None
    if any(token.get(name) for token in definition.get("added_tokens") or [] for name in trimming):
        return None
    merges = [_pair(merge) for merge in model["merges"]]
    return BytePairModel(vocab, merges, cuts, bool(model.get("ignore_merges")), added)


def _pair(merge: object) -> tuple[str, str]:
    """A merge as a list of two, or in the older form with a space between."""
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(halves, list) or [type(half) for half in halves] != [str, str]:
        raise ValueError(f"{merge!r} is no merge")
    return halves[0], halves[1]


def _template_bos(post_processor: Mapping[str, Any] | None) -> str | None:
    """The control token that the file's own template puts before a text."""
    if not post_processor:
        return None
    steps = post_processor["processors"] if post_processor.get("type") == "Sequence" else [post_processor]
    for step in steps:
        if step.get("type") == "TemplateProcessing" and step["single"] and "SpecialToken" in step["single"][0]:
            return str(step["single"][0]["SpecialToken"]["id"])
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return str(step["cls"][0])
    return None
