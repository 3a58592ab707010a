"""Write a model as the Hugging Face folder that transformers, vLLM and camelid read.

save_huggingface(model, Path("runs/cria/export"), tokenizer=tokenizer, lineage={"parent": "…"})
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from camelid.base.errors import ConfigError
from camelid.base.files import atomic_folder, check_free_space
from camelid.base.progress import progress
from camelid.checkpoint.huggingface import CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS
from camelid.checkpoint.lineage import LINEAGE, read_lineage, write_lineage
from camelid.checkpoint.safetensors import write_safetensors
from camelid.codecs import FORMATS
from camelid.model.linear import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from camelid.model.base import LanguageModel
    from camelid.tokenizer import Tokenizer

METADATA = {"format": "pt"}
"""What transformers wants to find in a file that torch tensors are read from."""

SPACE_FOR_THE_REST = 64 << 20
"""Bytes set aside for headers, index, tokenizer and config when free space is checked."""


@dataclass(frozen=True)
class _Weight:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def save_huggingface(
    model: LanguageModel,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    lineage: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the model and what travels with it; the folder appears only once it is complete.

    Weights are written one tensor at a time, tied ones once; packed ones are unpacked.

    Args:
        model: the model.
        folder: a folder that does not exist, is empty, or holds nothing but an earlier save; that one is replaced.
        tokenizer: written beside the weights.
        chat_template: the Jinja template, written as `chat_template.jinja`.
        generation_config: the contents of `generation_config.json`.
        dtype: of the written weights; None: each as it is, packed ones as float32.
        lineage: facts for `lineage.json` beside the version and the files' hashes.
        max_shard_bytes: of weights in one file; a larger tensor has a file of its own.

    Raises:
        ConfigError: the folder holds files that are no earlier save.
        ResourceError: not enough disk space; the folder is as it was.
    """
    folder = folder.resolve()
    weights = _weights(model, dtype)
    total = sum(weight.num_bytes for weight in weights)
    _check_replaceable(folder)
    check_free_space(folder, total + SPACE_FOR_THE_REST)
    config = model.config.to_hf() | {"torch_dtype": _main_dtype(weights)}
    with atomic_folder(folder) as new:
        _write_json(new / CONFIG, config)
        _write_weights(new, _shards(weights, max_shard_bytes), total)
        if tokenizer is not None:
            tokenizer.save(new)
        if chat_template is not None:
            (new / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8", newline="")
        if generation_config:
            _write_json(new / GENERATION_CONFIG, dict(generation_config))
        write_lineage(new, lineage)


def _weights(model: LanguageModel, dtype: torch.dtype | None) -> list[_Weight]:
    """Every weight in the model's order; a tied one hangs in the model only once."""
    weights: list[_Weight] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Matrix) and module.packed is not None:
            weights.append(_packed_weight(f"{prefix}weight", module, dtype or torch.float32))
        for leaf, parameter in module.named_parameters(recurse=False):
            weights.append(_dense_weight(prefix + leaf, parameter, dtype or parameter.dtype))
    return weights


def _dense_weight(name: str, parameter: Tensor, dtype: torch.dtype) -> _Weight:
    return _Weight(name, tuple(parameter.shape), dtype, lambda: parameter)


def _packed_weight(name: str, module: Matrix, dtype: torch.dtype) -> _Weight:
    packed = module.packed
    assert packed is not None
    codec = FORMATS.load(packed.format)
    return _Weight(name, tuple(packed.shape), dtype, lambda: codec.unpack(packed, dtype))


def _main_dtype(weights: Sequence[_Weight]) -> str:
    """The dtype that most of the bytes are in."""
    num_bytes: dict[torch.dtype, int] = {}
    for weight in weights:
        num_bytes[weight.dtype] = num_bytes.get(weight.dtype, 0) + weight.num_bytes
    return str(max(num_bytes, key=lambda dtype: num_bytes[dtype])).removeprefix("torch.")


def _shards(weights: Sequence[_Weight], max_bytes: int) -> list[list[_Weight]]:
    """Consecutive weights in groups of at most `max_bytes`, or of one weight."""
    shards: list[list[_Weight]] = [[]]
    room = max_bytes
    for weight in weights:
        if shards[-1] and weight.num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(weight)
        room -= weight.num_bytes
    return shards


def _write_weights(folder: Path, shards: Sequence[Sequence[_Weight]], total: int) -> None:
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [WEIGHTS]
    with progress("writing the weights", total) as shown:
        for name, shard in zip(names, shards, strict=True):
            by_name = {weight.name: weight for weight in shard}

            def read(tensor: str, by_name: Mapping[str, _Weight] = by_name) -> Tensor:
                shown.advance(by_name[tensor].num_bytes)
                return by_name[tensor].read()

            with (folder / name).open("wb") as file:
                write_safetensors(file, [(w.name, w.dtype, w.shape) for w in shard], read, METADATA)
    if len(shards) > 1:
        weight_map = {weight.name: name for name, shard in zip(names, shards, strict=True) for weight in shard}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _check_replaceable(folder: Path) -> None:
    """A folder is replaced as a whole, so it must not hold anything but an earlier save."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError("a file is in the way", where=folder, hint="choose another folder")
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not held:
        return
    saved = {LINEAGE, *read_lineage(folder).files} if LINEAGE in held else set()
    if others := sorted(held - saved):
        raise ConfigError(
            f"the folder holds files that are no earlier save: {', '.join(others[:3])}",
            where=folder,
            hint="choose a folder that does not exist yet, or empty this one",
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
