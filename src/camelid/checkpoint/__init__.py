"""Checkpoints: open any format, load it into a model, write the layout that the ecosystem reads.

with closing(open_checkpoint(Path("path/to/folder"))) as checkpoint:
    model = load_model(checkpoint)
save_huggingface(model, Path("copy"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camelid.checkpoint.base import Checkpoint, TensorInfo
    from camelid.checkpoint.load import load_model, open_checkpoint
    from camelid.checkpoint.save import save_huggingface

__all__ = ["Checkpoint", "TensorInfo", "load_model", "open_checkpoint", "save_huggingface"]

_HOME = {
    "Checkpoint": "camelid.checkpoint.base",
    "TensorInfo": "camelid.checkpoint.base",
    "load_model": "camelid.checkpoint.load",
    "open_checkpoint": "camelid.checkpoint.load",
    "save_huggingface": "camelid.checkpoint.save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'camelid.checkpoint' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
