"""Weights on their way into a file: what each will be, and how to get it when its turn has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from camelid.base.errors import ConfigError
from camelid.checkpoint.load import described_tensors
from camelid.codecs import FORMATS, codec_of
from camelid.codecs.packed import PackedTensor
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from camelid.base.progress import Progress
    from camelid.checkpoint.base import Checkpoint
    from camelid.model.base import LanguageModel
    from camelid.model.config import ModelConfig

CHUNK_ELEMENTS = 1 << 22
"""Numbers converted and checked at a time: 16 MB as float32."""


@dataclass(frozen=True)
class Weight:
    """One tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """That it is written in."""
    read: Callable[[], Tensor]
    """Gives it, in `dtype`."""
    release: Callable[[], None] = lambda: None
    """Called when it has been written."""

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def weights_of_model(model: LanguageModel, dtype: torch.dtype | None) -> list[Weight]:
    """Every weight in the model's order; a tied one hangs in the model only once.

    Args:
        model: the model.
        dtype: of the written weights; None: each as it is, packed ones as float32.
    """
    weights: list[Weight] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Matrix) and module.packed is not None:
            weights.append(_weight(f"{prefix}weight", module.packed, dtype))
        weights += [_weight(prefix + leaf, value, dtype) for leaf, value in module.named_parameters(recurse=False)]
    return weights


def weights_of_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype | None) -> tuple[ModelConfig, list[Weight]]:
    """The config of a checkpoint and its weights, of which one at a time is in memory; arguments as above.

    Raises:
        ConfigError: the config asks for what the architecture cannot do.
        FormatError: a tensor is missing, unexpected or of the wrong shape.
    """
    config, tensors = described_tensors(checkpoint)

    def weight(name: str) -> Weight:
        info = tensors[name]
        own = torch.float32 if info.format in FORMATS.names() else getattr(torch, info.format)
        written = dtype or own
        return Weight(
            name,
            info.shape,
            written,
            lambda: dense(checkpoint.read(name), written, name),
            lambda: checkpoint.release(name),
        )

    return config, [weight(name) for name in tensors]


def reader(weights: Iterable[Weight], shown: Progress) -> Callable[[str], Tensor]:
    """Gives weights by name in the order that a file wants them; when one is asked for, the one before is done with."""
    by_name = {weight.name: weight for weight in weights}
    last: list[Weight] = []

    def read(name: str) -> Tensor:
        while last:
            last.pop().release()
        last.append(by_name[name])
        shown.advance(by_name[name].num_bytes)
        return by_name[name].read()

    return read


def main_dtype(weights: Sequence[Weight]) -> str:
    """The dtype that most of the bytes are in."""
    num_bytes: dict[torch.dtype, int] = {}
    for weight in weights:
        num_bytes[weight.dtype] = num_bytes.get(weight.dtype, 0) + weight.num_bytes
    return str(max(num_bytes, key=lambda dtype: num_bytes[dtype])).removeprefix("torch.")


def dense(value: Tensor | PackedTensor, dtype: torch.dtype, name: str) -> Tensor:
    """A weight unpacked and converted; itself if there is nothing to do.

    Raises:
        ConfigError: a finite number is too large for `dtype`.
    """
    if isinstance(value, PackedTensor):
        unpacked = codec_of(value.format).unpack(value, dtype)
        if dtype == torch.float16 and not unpacked.isfinite().all():  # a block's scale may be a large half itself
            raise _too_large(dtype, name)
        return unpacked
    value = value.detach()
    if value.dtype == dtype:
        return value
    out = torch.empty(value.shape, dtype=dtype)
    rows = max(CHUNK_ELEMENTS // max(value[:1].numel(), 1), 1)
    for source, target in zip(torch.split(value, rows), torch.split(out, rows), strict=True):
        target.copy_(source)
        if dtype.itemsize < source.element_size() and not torch.equal(target.isfinite().cpu(), source.isfinite().cpu()):
            raise _too_large(dtype, name)
    return out


def _too_large(dtype: torch.dtype, name: str) -> ConfigError:
    return ConfigError(
        f"a weight is too large for {str(dtype).removeprefix('torch.')}",
        where=name,
        hint="take bfloat16 or float32, which reach further",
    )


def _weight(name: str, value: Tensor | PackedTensor, dtype: torch.dtype | None) -> Weight:
    own = torch.float32 if isinstance(value, PackedTensor) else value.dtype
    return Weight(name, tuple(value.shape), dtype or own, lambda: dense(value, dtype or own, name))
