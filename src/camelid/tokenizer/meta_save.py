"""A tokenizer as the `tokenizer.model` of Meta's releases, where it has that form."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from camelid.tokenizer.byte_pairs import unspell
from camelid.tokenizer.chat_images import IMAGE_TOKEN
from camelid.tokenizer.meta import LLAMA3, LLAMA3_1, LLAMA4
from camelid.tokenizer.spm import SentencePieceTokenizer
from camelid.tokenizer.tiktoken_bpe import TiktokenBPE

if TYPE_CHECKING:
    from camelid.tokenizer.base import SpecialTokens, Tokenizer
    from camelid.tokenizer.meta import Release

_RELEASES = {128_000: (LLAMA3_1, LLAMA3), 200_000: (LLAMA4,)}
"""Number of ranks → the releases that have it."""


def meta_tokenizer_model(tokenizer: Tokenizer) -> bytes | None:
    """The content of a `tokenizer.model` that gives the same ids, in SentencePiece's or tiktoken's format.

    Reserved control tokens may get other names in it: Hugging Face's files number them differently from Meta's.

    Returns:
        None if there is none: Meta's formats hold SentencePiece vocabularies, and those of Llama 3 and 4.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.file
    if not isinstance(tokenizer, TiktokenBPE):
        return None
    tokens = _tokens_by_rank(tokenizer)
    releases = _RELEASES.get(len(tokens), ())
    if not any(_has_control_tokens(tokenizer.special, release, len(tokens)) for release in releases):
        return None
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


def _tokens_by_rank(tokenizer: TiktokenBPE) -> list[bytes]:
    """Ordinary tokens whose ids count up from 0; empty if they do not."""
    definition = json.loads(tokenizer.definition)
    added = {token["id"] for token in definition.get("added_tokens") or []}
    ids = {token_id: token for token, token_id in definition["model"]["vocab"].items() if token_id not in added}
    return [unspell(ids[i]) for i in range(len(ids))] if ids.keys() == set(range(len(ids))) else []


def _has_control_tokens(special: SpecialTokens, release: Release, first: int) -> bool:
    """Whether there are as many as the release has, and each with a name of its own is where the release has it.

    Hugging Face's files call some of them reserved that the release names, and Llama 3.2 Vision's have the image token
    behind the vocabulary, where the model takes it to be; Meta's code puts it there by itself.
    """
    held = dict(special.ids)
    last = first + release.num_special
    if held.get(IMAGE_TOKEN) == last:
        del held[IMAGE_TOKEN]
    expected = {name: first + i for i, name in enumerate(release.names) if "reserved" not in name}
    named = {name: token_id for name, token_id in held.items() if "reserved" not in name}
    complete = set(held.values()) == set(range(first, last)) and {release.bos, release.eos} <= named.keys()
    return complete and named.items() <= expected.items()
