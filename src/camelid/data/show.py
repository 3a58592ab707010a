"""A batch for the eye: its tokens, and in which of them the loss is taken."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from camelid.data.batch import Batch
    from camelid.tokenizer.base import Tokenizer

LEARNED: Final = ("\x1b[30;42m", "\x1b[30;102m")
READ: Final = ("\x1b[37;40m", "\x1b[37;100m")
"""Two shades each, in turns, so that one token is told from the next: black on green, white on grey."""
_RULE: Final = "\x1b[2m"
_RESET: Final = "\x1b[0m"


def show(batch: Batch, tokenizer: Tokenizer) -> str:
    """The batch in colours of a terminal: green where the loss is taken, grey where a token is only read.

    A line before each sequence says its number and its size. Line breaks are shown as ⏎, and what else has no shape as
    an escape, so that no text can command the terminal.
    """
    edges = np.cumsum([0, *batch.lengths]).tolist()
    return "\n".join(
        _sequence(batch, tokenizer, number, start, stop) for number, (start, stop) in enumerate(pairwise(edges))
    )


def _sequence(batch: Batch, tokenizer: Tokenizer, number: int, start: int, stop: int) -> str:
    counts = batch.weights_T[start:stop] > 0
    ids = batch.ids_T[start:stop].tolist()
    learned = [False, *counts[:-1].tolist()]
    if counts[-1]:
        ids.append(int(batch.targets_T[stop - 1]))
        learned.append(True)
    title = f"{_RULE}sequence {number}: {len(ids)} tokens, {sum(learned)} learned{_RESET}"
    tokens = (
        _coloured(tokenizer.token_bytes(token_id), (LEARNED if is_learned else READ)[index % 2])
        for index, (token_id, is_learned) in enumerate(zip(ids, learned, strict=True))
    )
    return f"{title}\n{''.join(tokens)}{_RESET}"


def _coloured(token: bytes, colour: str) -> str:
    """The token's text without control characters; bytes that are no whole character as \\x escapes.

    The colour ends before a line break and starts again after it, so that it never runs to the margin.
    """
    text = token.decode("utf-8", "backslashreplace")
    shown = "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)
    return colour + shown.replace("\n", f"⏎{_RESET}\n{colour}")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
