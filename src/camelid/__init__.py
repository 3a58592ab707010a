"""camelid: the open Llama system, end to end.

    import camelid

    llm = camelid.load("smollm2-135m-instruct")
    print(llm.generate([{"role": "user", "content": "What is the capital of France?"}]).text)

Importing the package costs nothing: torch is imported by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camelid.base.errors import CamelidError
    from camelid.llm import LLM, load
    from camelid.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["LLM", "CamelidError", "__version__", "load", "load_tokenizer"]

_HOME = {
    "CamelidError": "camelid.base.errors",
    "LLM": "camelid.llm",
    "load": "camelid.llm",
    "load_tokenizer": "camelid.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'camelid' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
