"""Documents of any length as windows that fit a context, every token scored exactly once.

Shape suffixes: N tokens of one window, S those of them that are scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Tokens that the model sees together; the last of them are scored."""

    ids_N: NDArray[np.int64]
    """With the last target, which is not fed to the model."""
    num_scored: int
    """How many of the last tokens are scored (S); the others are context. The first is never scored."""


def windows_of(ids_N: NDArray[np.int64], context: int, overlap: int) -> Iterator[Window]:
    """The windows of one document; their scored tokens, joined, are the document without its first token.

    A document that fits is one window. In a longer one each token after the first window has at least `overlap` tokens
    before it; the last window reaches back as far as the context allows, which costs nothing.

    Args:
        ids_N: the document; its first token is only a context.
        context: tokens that the model takes at once.
        overlap: tokens that a window repeats of the one before; below `context`.
    """
    assert 0 <= overlap < context
    num_scored, last = 0, len(ids_N) - 1
    while num_scored < last:
        end = min(last, num_scored + (context - overlap if num_scored else context))
        yield Window(ids_N[max(0, end - context) : end + 1], end - num_scored)
        num_scored = end
