"""How large a model is, counted on the module itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.model import ARCHITECTURES

if TYPE_CHECKING:
    from camelid.model.config import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the module that the config builds, on the meta device: no memory is taken, whatever the size.

    `config.num_parameters` gives the same count in closed form, without importing torch.
    """
    with torch.device("meta"):
        model = ARCHITECTURES.load(config.model_type).from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
