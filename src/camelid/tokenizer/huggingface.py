"""The small files beside a tokenizer.json or tokenizer.model: which token begins, ends and pads a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import TokenizerError
from camelid.base.files import atomic_file, write_text
from camelid.base.strict_json import parse_json
from camelid.tokenizer.base import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ROLES: Final = ("bos", "eos", "pad", "unk")


def special_tokens(
    folder: Path, vocab: Mapping[str, int], control: Mapping[str, int], *, template_bos: str | None = None
) -> SpecialTokens:
    """The control tokens as the files in a folder declare them.

    The first file that names a role's token wins: tokenizer_config.json, special_tokens_map.json, and by id
    generation_config.json and config.json.

    Args:
        folder: where the files lie; any may be missing.
        vocab: every token's id.
        control: the tokens already known to be control tokens.
        template_bos: the token that the vocabulary's own template puts first.

    Raises:
        TokenizerError: a file is no JSON object, or names a begin or end token that the vocabulary lacks.
    """
    config = read_json(folder / "tokenizer_config.json")
    ids = dict(control)
    found: dict[str, int | None] = dict.fromkeys(_ROLES)
    by_name = {
        "tokenizer_config.json": config,
        "special_tokens_map.json": read_json(folder / "special_tokens_map.json"),
    }
    for role in _ROLES:
        for name, settings in by_name.items():
            content = content_of(settings.get(f"{role}_token"))
            if content is None:
                continue
            if content in vocab:
                found[role] = ids[content] = vocab[content]
                break
            if role in ("bos", "eos"):
                raise TokenizerError(
                    f"{role}_token is {content!r}, which the vocabulary lacks",
                    where=folder / name,
                    hint="the files of two models may be mixed in this folder",
                )
    for name in ("generation_config.json", "config.json"):
        settings = read_json(folder / name)
        for role in ("bos", "eos", "pad"):
            token_id = settings.get(f"{role}_token_id")
            first = token_id[0] if isinstance(token_id, list) and token_id else token_id
            if found[role] is None and isinstance(first, int) and first in control.values():
                found[role] = first
    if found["bos"] is None and template_bos is not None:
        found["bos"] = vocab.get(template_bos)
    asked = config.get("add_bos_token")
    adds_bos = asked if isinstance(asked, bool) else template_bos is not None
    return SpecialTokens(ids=ids, add_bos=adds_bos and found["bos"] is not None, **found)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file.

    Raises:
        TokenizerError: the file holds no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"this is no JSON: {error}", where=path) from error
    if not isinstance(value, dict):
        raise TokenizerError("this JSON is no object", where=path)
    return value


def save_files(folder: Path, special: SpecialTokens, files: Mapping[str, bytes]) -> None:
    """Write a vocabulary's files and the tokenizer_config.json that goes with them; each is whole or absent."""
    for name, content in files.items():
        with atomic_file(folder / name) as file:
            file.write(content)
    write_text(folder / "tokenizer_config.json", json.dumps(tokenizer_config(special), indent=2) + "\n")


def tokenizer_config(special: SpecialTokens) -> dict[str, Any]:
    """What transformers needs to know beside a tokenizer.json."""
    names = {token_id: text for text, token_id in special.ids.items()}
    roles = {f"{role}_token": names.get(getattr(special, role)) for role in _ROLES}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": special.add_bos,
        **{role: name for role, name in roles.items() if name is not None},
    }


def content_of(token: object) -> str | None:
    """A token as the files spell it: a string, or an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
