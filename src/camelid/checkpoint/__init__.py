"""Checkpoints: open any format, load it into a model, write the layout that the ecosystem reads.

with closing(open_checkpoint(Path("path/to/folder"))) as checkpoint:
    model = load_model(checkpoint)
save_huggingface(model, Path("copy"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.checkpoint.base import Checkpoint, TensorInfo
    from camelid.checkpoint.conversion import convert
    from camelid.checkpoint.load import load_model, model_config, open_checkpoint
    from camelid.checkpoint.save import save_huggingface

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "convert",
    "load_model",
    "model_config",
    "open_checkpoint",
    "save_huggingface",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Checkpoint": "camelid.checkpoint.base",
        "TensorInfo": "camelid.checkpoint.base",
        "convert": "camelid.checkpoint.conversion",
        "load_model": "camelid.checkpoint.load",
        "model_config": "camelid.checkpoint.load",
        "open_checkpoint": "camelid.checkpoint.load",
        "save_huggingface": "camelid.checkpoint.save",
    },
)
