"""A checkpoint with an adapter merged into its weights, tensor by tensor as they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from camelid.checkpoint.base import Checkpoint
from camelid.checkpoint.load import described_tensors
from camelid.checkpoint.weights import dense
from camelid.codecs import FORMATS
from camelid.model import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.checkpoint.base import TensorInfo
    from camelid.codecs.packed import PackedTensor
    from camelid.model.lora import LoraAdapter
    from camelid.tokenizer import Tokenizer


class MergedCheckpoint(Checkpoint):
    """Another checkpoint whose projections have an adapter's changes added; all else is as it is there.

    A sum is made in fp32 and rounded once, to the weight's own dtype. Packed weights become dense in fp32: their blocks
    could not hold the change.

    Args:
        checkpoint: is closed with this one.
        adapter: what is merged.

    Raises:
        EngineError: the adapter does not fit the model.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: LoraAdapter) -> None:
        config, _ = described_tensors(checkpoint)
        with torch.device("meta"):
            adapter.check_fits(ARCHITECTURES.load(checkpoint.config["model_type"]).from_config(config))
        self.path = checkpoint.path
        self.format = checkpoint.format
        self._inner = checkpoint
        self._changes = {f"{path}.weight": change for path, change in adapter.changes.items()}

    @property
    def config(self) -> Mapping[str, Any]:
        """The other's."""
        return self._inner.config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The other's, with dense fp32 for packed weights that change."""
        infos = dict(self._inner.tensors)
        for name in self._changes:
            if infos[name].format in FORMATS.names():
                num_bytes = torch.Size(infos[name].shape).numel() * torch.float32.itemsize
                infos[name] = replace(infos[name], format="float32", num_bytes=num_bytes)
        return infos

    def read(self, name: str) -> Tensor | PackedTensor:
        """One tensor, changed where the adapter changes it."""
        if name not in self._changes:
            return self._inner.read(name)
        original = dense(self._inner.read(name), torch.float32, name)
        merged = original + self._changes[name].change()
        return dense(merged, getattr(torch, self.tensors[name].format), name)

    @property
    def files(self) -> Sequence[Path]:
        """The other's, without the adapter's."""
        return self._inner.files

    def release(self, name: str) -> None:
        """As the other does; a sum is nobody's but the caller's."""
        self._inner.release(name)

    def load_tokenizer(self) -> Tokenizer:
        """The other's."""
        return self._inner.load_tokenizer()

    @property
    def chat_template(self) -> str | None:
        """The other's."""
        return self._inner.chat_template

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The other's."""
        return self._inner.generation_config

    @property
    def preprocessor_config(self) -> Mapping[str, Any]:
        """The other's."""
        return self._inner.preprocessor_config

    def close(self) -> None:
        """Close the other."""
        self._inner.close()
