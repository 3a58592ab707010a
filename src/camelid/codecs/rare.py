"""Formats that are seldom met: decoded by the `gguf` package, an extra, and never packed.

Their levels are tables of hundreds of entries; whoever wants speed packs such a model anew.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch

from camelid.base.errors import NotFoundError
from camelid.base.gguf_header import GGML_TYPES
from camelid.codecs.base import BlockCodec

if TYPE_CHECKING:
    from torch import Tensor


class RareFormat(BlockCodec):
    """One of ggml's formats; read only."""

    type_id: int
    """A key of `GGML_TYPES`."""

    def unpack_blocks(self, blocks_GK: Tensor) -> Tensor:
        """Decode, on the CPU.

        Raises:
            NotFoundError: the `gguf` package is missing, or too old for this format.
        """
        try:
            gguf = import_module("gguf")
            weights = gguf.quants.dequantize(blocks_GK.cpu().numpy(), gguf.GGMLQuantizationType(self.type_id))
        except (ImportError, ValueError, NotImplementedError) as error:
            raise NotFoundError(
                f"weights in the format {self.name} need the gguf package to be read",
                hint="pip install --upgrade 'camelid[gguf]', or take the model in another quantisation",
            ) from error
        return torch.from_numpy(weights).to(blocks_GK.device)


def _format(type_id: int) -> RareFormat:
    kind = GGML_TYPES[type_id]
    settings = {"name": kind.name.lower(), "block_size": kind.block_size, "block_bytes": kind.block_bytes}
    named: type[RareFormat] = type(kind.name, (RareFormat,), {**settings, "type_id": type_id})
    return named()


IQ2_XXS = _format(16)
IQ2_XS = _format(17)
IQ3_XXS = _format(18)
IQ1_S = _format(19)
IQ3_S = _format(21)
IQ2_S = _format(22)
IQ4_XS = _format(23)
IQ1_M = _format(29)
TQ1_0 = _format(34)
TQ2_0 = _format(35)
MXFP4 = _format(39)
