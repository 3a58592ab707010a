"""JSON without the freedom that the standard leaves open: a key that an object names twice is an error.

Readers disagree on which of the two counts, so that a file may say one thing to a check and another to a loader
(RFC 8259, §4).
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value in a JSON text.

    Raises:
        ValueError: not JSON, or an object names a key twice; what UTF-8 does not decode counts as not JSON.
        RecursionError: nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object names {twice[:80]!r} twice")
    return fields
