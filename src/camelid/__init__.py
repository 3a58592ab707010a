"""camelid: the open Llama system, end to end.

    import camelid

    llm = camelid.load("smollm2-135m-instruct")
    print(llm.generate([{"role": "user", "content": "What is the capital of France?"}]).text)

Importing the package costs nothing: torch is imported by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.base.errors import CamelidError
    from camelid.llm import LLM, load
    from camelid.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["LLM", "CamelidError", "__version__", "load", "load_tokenizer"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CamelidError": "camelid.base.errors",
        "LLM": "camelid.llm",
        "load": "camelid.llm",
        "load_tokenizer": "camelid.tokenizer",
    },
    "__version__",
)
