"""The projections of a model that is loaded, packed into a format for its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from camelid.base.errors import ConfigError
from camelid.codecs import DEVICE_FORMATS
from camelid.model.linear import Linear

if TYPE_CHECKING:
    from camelid.model.base import LanguageModel


@torch.no_grad()
def pack_projections(model: LanguageModel, format: str) -> None:
    """Replace the weights of all projections but the output matrix, one after the other.

    Embeddings, norms, experts' own tensors and what chooses between experts stay as they are.

    Args:
        model: dense, on its device and in its dtype.
        format: a key of `camelid.codecs.DEVICE_FORMATS`.

    Raises:
        NotFoundError: there is no such format.
        ResourceError: the package behind it is not installed.
        ConfigError: the format does not take one of the matrices, or a weight is packed already. Those before it have
            been replaced.
    """
    codec = DEVICE_FORMATS.load(format)
    for path, module in model.named_modules():
        if not isinstance(module, Linear) or module is model.output_matrix or module.stays_exact:
            continue
        if module.packed is not None:
            raise ConfigError(
                f"this weight is packed as {module.packed.format} already", where=path, hint="load with packed=False"
            )
        try:
            module.load_packed(codec.pack(module.dense()))
        except ConfigError as error:
            raise ConfigError(error.what, where=path, hint=error.hint) from error
