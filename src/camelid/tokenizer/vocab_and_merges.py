"""A vocab.json with its merges.txt, as GPT-2 and OPT were released, as the definition of a tokenizer.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import TokenizerError
from camelid.tokenizer.huggingface import content_of, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MERGES = "merges.txt"

CLASSES: Final = ("GPT2Tokenizer", "GPT2TokenizerFast")
"""Tokenizer classes that split text as GPT-2 does; others keep the same two files and split otherwise."""


def is_vocabulary(definition: object, path: Path) -> bool:
    """Whether a JSON document is a vocab.json, which maps every token to its id, with its merges beside it."""
    if not isinstance(definition, dict) or not definition or not (path.parent / MERGES).is_file():
        return False
    return all(type(token_id) is int for token_id in definition.values())


def definition_of(vocab: Mapping[str, int], path: Path) -> dict[str, Any]:
    """The tokenizer.json that says the same as a vocab.json and the files beside it.

    Args:
        vocab: every token's id.
        path: the vocab.json.

    Raises:
        TokenizerError: the files beside it are of another kind of tokenizer, or broken.
    """
    folder = path.parent
    config = read_json(folder / "tokenizer_config.json")
    kind = config.get("tokenizer_class", CLASSES[0])
    if kind not in CLASSES:
        raise TokenizerError(
            f"a vocab.json of a {kind} is not known",
            where=path,
            hint="save the tokenizer as tokenizer.json with transformers",
        )
    control = _control_tokens(folder, config, vocab)
    added = {**read_json(folder / "added_tokens.json"), **control}
    bos = content_of(config.get("bos_token")) if config.get("add_bos_token") is True else None
    return {
        "added_tokens": [
            {"id": token_id, "content": content, "special": content in control} for content, token_id in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": _byte_level(add_prefix_space=config.get("add_prefix_space") is True),
        "post_processor": None if bos is None or bos not in vocab else _begin_with(bos, vocab),
        "decoder": _byte_level(add_prefix_space=True),
        "model": {"type": "BPE", "vocab": dict(vocab), "merges": _merges(folder / MERGES)},
    }


def _control_tokens(folder: Path, config: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[str, int]:
    """Tokens with a role, in the order of their ids."""
    declared = [*config.items(), *read_json(folder / "special_tokens_map.json").items()]
    contents = {content_of(token) for role, token in declared if role.endswith("_token")}
    found = [(vocab[content], content) for content in contents if content is not None and content in vocab]
    return {content: token_id for token_id, content in sorted(found)}


def _merges(path: Path) -> list[str]:
    """One merge a line, after a line that tells the version."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not a UTF-8 text file: {error}", where=path) from error
    first = 1 if lines[0].startswith("#version") else 0
    return [stripped for line in lines[first:] if (stripped := line.rstrip("\r"))]


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True}


def _begin_with(bos: str, vocab: Mapping[str, int]) -> dict[str, Any]:
    token, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, token, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
    }
