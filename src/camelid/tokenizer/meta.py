"""Meta's tokenizer.model files of Llama 3 and Llama 4: a base64 token and its rank on each line, in tiktoken's format.

The file holds no control tokens and no pattern; both are known by the number of ranks.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from camelid.base.errors import TokenizerError
from camelid.tokenizer import split_patterns
from camelid.tokenizer.added_tokens import AddedToken
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import BytePairModel, every_cut, spell, tokenizer_json

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.tokenizer.tiktoken_bpe import TiktokenBPE


@dataclass(frozen=True)
class Release:
    """What a release adds to its ranks."""

    pattern: str
    names: tuple[str, ...]
    """Control tokens in the order of their ids, which follow the ranks."""
    num_special: int
    """Control tokens with the reserved ones that fill up the rest."""
    bos: str
    eos: str
    pad: str | None
    first_reserved: int = 0

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """All `num_special` of them."""
        count = self.num_special - len(self.names)
        return (*self.names, *_reserved("", count, self.first_reserved))


def _reserved(group: str, count: int, start: int = 0) -> tuple[str, ...]:
    prefix = f"{group}_" if group else ""
    return tuple(f"<|{prefix}reserved_special_token_{i}|>" for i in range(start, start + count))


LLAMA3: Final = Release(
    pattern=split_patterns.LLAMA3,
    names=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *_reserved("", 4),
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
    ),
    num_special=256,
    first_reserved=5,
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    pad=None,
)
"""Llama 3, April 2024."""

LLAMA3_1: Final = Release(
    pattern=split_patterns.LLAMA3,
    names=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *_reserved("", 2),
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
    ),
    num_special=256,
    first_reserved=2,
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    pad="<|finetune_right_pad_id|>",
)
"""Llama 3.1, 3.2 and 3.3."""

LLAMA4: Final = Release(
    pattern=split_patterns.LLAMA4,
    names=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|eom|>",
        "<|eot|>",
        "<|step|>",
        *_reserved("text_post_train", 6),
        "<|python_start|>",
        "<|python_end|>",
        "<|finetune_right_pad|>",
        *_reserved("text_post_train", 61, 8),
        "<|image_start|>",
        "<|image_end|>",
        *_reserved("vision", 2),
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
        *_reserved("vision", 4, 2),
        "<|image|>",
        "<|vision_reserved_special_token_6|>",
        "<|patch|>",
        *_reserved("vision", 1041, 7),
        *_reserved("reasoning", 8),
        "<|reasoning_thinking_start|>",
        "<|reasoning_thinking_end|>",
    ),
    num_special=2048,
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    pad="<|finetune_right_pad|>",
)

_BY_NUMBER_OF_RANKS: Final = {128_000: LLAMA3_1, 200_000: LLAMA4}


def load_tiktoken_model(data: bytes, path: Path, *, original_llama3: bool = False) -> TiktokenBPE:
    """The tokenizer of Llama 3's or Llama 4's tokenizer.model.

    Args:
        data: the file's content.
        path: names it in errors.
        original_llama3: use the control tokens of Llama 3 rather than those of 3.1 and later; the file is the same.

    Raises:
        TokenizerError: a line is broken, a rank comes twice or is missing, or the vocabulary is not known.
    """
    tokens = _read_ranks(data, path)
    release = _BY_NUMBER_OF_RANKS.get(len(tokens))
    if release is None:
        known = " and ".join(f"{number:,}" for number in _BY_NUMBER_OF_RANKS)
        raise TokenizerError(
            f"a tiktoken vocabulary of {len(tokens):,} ranks is not known",
            where=path,
            hint=f"those of {known} are (Llama 3 and 4); for any other use its tokenizer.json, which holds the pattern",
        )
    return with_release(tokens, LLAMA3 if release is LLAMA3_1 and original_llama3 else release)


def with_release(tokens: list[bytes], release: Release) -> TiktokenBPE:
    """The tokenizer of tokens, in order of rank, and a release's control tokens after them."""
    from camelid.tokenizer.tiktoken_bpe import TiktokenBPE

    control = {name: len(tokens) + i for i, name in enumerate(release.control_tokens)}
    special = SpecialTokens(
        ids=control,
        bos=control[release.bos],
        eos=control[release.eos],
        pad=None if release.pad is None else control[release.pad],
        add_bos=True,
    )
    added = [AddedToken(name, token_id, special=True) for name, token_id in control.items()]

    def as_tokenizer_json() -> str:
        vocab = {spell(token): rank for rank, token in enumerate(tokens)}
        model = BytePairModel(vocab, every_cut(tokens), (release.pattern,), ignore_merges=True, added=added)
        return tokenizer_json(model, special)

    ranks = {token: rank for rank, token in enumerate(tokens)}
    return TiktokenBPE(ranks, release.pattern, added, special, as_tokenizer_json, reference_chunks=True)


def _read_ranks(data: bytes, path: Path) -> list[bytes]:
    """The tokens of a tiktoken file in order of rank.

    Raises:
        TokenizerError: with the number of the line that is wrong.
    """
    token_of: dict[int, bytes] = {}
    line_of: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        where = f"{path}, line {number}"
        try:
            encoded, rank_text = line.split()
            token, rank = binascii.a2b_base64(encoded, strict_mode=True), int(rank_text)
        except ValueError as error:
            raise TokenizerError("this line is not a base64 token and its rank", where=where) from error
        if rank in token_of or token in line_of:
            what = f"the rank {rank}" if rank in token_of else f"the token of line {line_of[token]}"
            raise TokenizerError(f"{what} comes twice", where=where)
        token_of[rank] = token
        line_of[token] = number
    try:
        return [token_of[rank] for rank in range(len(token_of))]
    except KeyError as error:
        raise TokenizerError(f"no line has the rank {error}", where=path, hint="the file may be incomplete") from error
