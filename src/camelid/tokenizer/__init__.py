"""Text to token ids and back: every vocabulary format behind one interface.

    tokenizer = load_tokenizer("path/to/folder-or-file")
    tokenizer.decode(tokenizer.encode("Hello world"))

The libraries behind a format are imported when a vocabulary of that format is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camelid.tokenizer.base import SpecialTokens, StreamDecoder, Tokenizer
    from camelid.tokenizer.load import load_tokenizer

__all__ = ["SpecialTokens", "StreamDecoder", "Tokenizer", "load_tokenizer"]

_HOME = {
    "SpecialTokens": "camelid.tokenizer.base",
    "StreamDecoder": "camelid.tokenizer.base",
    "Tokenizer": "camelid.tokenizer.base",
    "load_tokenizer": "camelid.tokenizer.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'camelid.tokenizer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
