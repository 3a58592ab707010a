"""Text to token ids and back: every vocabulary format behind one interface.

    tokenizer = load_tokenizer("path/to/folder-or-file")
    tokenizer.decode(tokenizer.encode("Hello world"))

The libraries behind a format are imported when a vocabulary of that format is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.tokenizer.base import SpecialTokens, StreamDecoder, Tokenizer
    from camelid.tokenizer.load import load_tokenizer

__all__ = ["SpecialTokens", "StreamDecoder", "Tokenizer", "load_tokenizer"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "SpecialTokens": "camelid.tokenizer.base",
        "StreamDecoder": "camelid.tokenizer.base",
        "Tokenizer": "camelid.tokenizer.base",
        "load_tokenizer": "camelid.tokenizer.load",
    },
)
