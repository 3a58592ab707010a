"""Models: one definition per architecture, used by the trainer, the engine and the exporters alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.registry import Registry

if TYPE_CHECKING:
    from camelid.model.base import LanguageModel

ARCHITECTURES: Registry[type[LanguageModel]] = Registry(
    "architecture",
    "camelid.architectures",
    {
        "llama": "camelid.model.llama:Llama",
        "llama4_text": "camelid.model.llama4:Llama4",
        "mllama": "camelid.model.mllama:Mllama",
        "opt": "camelid.model.opt:OPT",
    },
)
"""`model_type` of a `config.json` → the class that implements it."""
