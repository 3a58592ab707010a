"""Whether merging by rank, as tiktoken does, gives the same ids as a list of merges, for every text."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Final

from camelid.base.errors import CamelidError
from camelid.base.files import write_text
from camelid.base.runtime import home
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET, BytePairModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

MERGES_WORTH_REMEMBERING: Final = 100_000
"""A proof of this size takes about 0.3 s; the verdict on a larger one is kept in camelid's folder."""

_REVISION: Final = "1"
"""Changes with the proof, so that older verdicts are not used."""


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
    made = [left + right for left, right in model.merges]
    single_bytes = [character for character in BYTE_ALPHABET if character in model.vocab]
    order = [*single_bytes, *dict.fromkeys(made)]
    if len(made) <= MERGES_WORTH_REMEMBERING:
        return order if _is_proven(model, made, order) else None
    path = home() / "tokenizers" / f"{_digest(model)}.verdict"
    verdicts = {True: "merges by rank", False: "needs its list"}
    with suppress(OSError, UnicodeDecodeError):
        remembered = path.read_text(encoding="utf-8")
        for proven, verdict in verdicts.items():
            if remembered == verdict:
                return order if proven else None
    proven = _is_proven(model, made, order)
    with suppress(CamelidError):
        write_text(path, verdicts[proven])
    return order if proven else None


def _digest(model: BytePairModel) -> str:
    """A hash of everything that the proof looks at."""
    added = [token.content for token in model.added]
    parts = [_REVISION, model.ignore_merges, added, list(model.vocab), model.merges]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_proven(model: BytePairModel, made: Sequence[str], order: Sequence[str]) -> bool:
    symbols = set(order)
    added = {token.content for token in model.added}
    if not symbols <= model.vocab.keys() or not added.isdisjoint(symbols):
        return False
    if not all(left in symbols and right in symbols for left, right in model.merges):
        return False
    if model.ignore_merges and not model.vocab.keys() <= symbols | added:
        return False
    if len(set(made)) == len(made) and _merges_are_reached(model.merges):
        return True
    return model.ignore_merges and _every_cut_is_listed(model.merges, made, symbols)


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
