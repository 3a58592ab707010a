"""Tensor names with the layer's number taken out, so that a table needs one line for all layers."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\.(0|[1-9][0-9]*)\.")


def split_layer(name: str) -> tuple[str, str]:
    """The pattern and the number: "blk.7.attn_q" → ("blk.{layer}.attn_q", "7"); "" where there is none."""
    found = _NUMBER.search(name)
    if found is None:
        return name, ""
    return f"{name[: found.start(1)]}{{layer}}{name[found.end(1) :]}", found[1]
