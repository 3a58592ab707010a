"""Write a model or a checkpoint as the Hugging Face folder that transformers, vLLM and camelid read.

save_huggingface(model, Path("runs/cria/export"), tokenizer=tokenizer, lineage={"parent": "…"})
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from camelid.base.errors import ConfigError
from camelid.base.files import atomic_folder, check_free_space
from camelid.base.progress import progress
from camelid.checkpoint.base import Checkpoint
from camelid.checkpoint.huggingface import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    PREPROCESSOR_CONFIG,
    WEIGHTS,
)
from camelid.checkpoint.lineage import LINEAGE, read_lineage, write_lineage
from camelid.checkpoint.safetensors import write_safetensors
from camelid.checkpoint.weights import main_dtype, reader, weights_of_checkpoint, weights_of_model
from camelid.model import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from camelid.checkpoint.weights import Weight
    from camelid.model.base import LanguageModel
    from camelid.model.config import ModelConfig
    from camelid.model.image_reader import ImageReader
    from camelid.tokenizer import Tokenizer

METADATA = {"format": "pt"}
"""What transformers wants to find in a file that torch tensors are read from."""

SPACE_FOR_THE_REST = 64 << 20
"""Bytes set aside for headers, index, tokenizer and config when free space is checked."""


def save_huggingface(
    source: LanguageModel | Checkpoint,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    preprocessor_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    lineage: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the model and what travels with it; the folder appears only once it is complete.

    Weights are written one tensor at a time, tied ones once; packed ones are unpacked. Of a checkpoint no more than one
    tensor is in memory.

    Args:
        source: the model, or an open checkpoint of any format.
        folder: a folder that does not exist, is empty, or holds nothing but an earlier save; that one is replaced.
        tokenizer: written beside the weights.
        chat_template: the Jinja template, written as `chat_template.jinja`.
        generation_config: the contents of `generation_config.json`.
        preprocessor_config: the contents of `preprocessor_config.json`; left out: the defaults of a model that reads
            images.
        dtype: of the written weights; None: each as it is, packed ones as float32.
        lineage: facts for `lineage.json` beside the version and the files' hashes.
        max_shard_bytes: of weights in one file; a larger tensor has a file of its own.

    Raises:
        ConfigError: the folder holds files that are no earlier save, or a weight is too large for `dtype`.
        FormatError: a checkpoint lacks a tensor or has one too many.
        ResourceError: not enough disk space; the folder is as it was.
    """
    folder = folder.resolve()
    config: ModelConfig
    if isinstance(source, Checkpoint):
        config, weights = weights_of_checkpoint(source, dtype)
    else:
        config, weights = source.config, weights_of_model(source, dtype)
    image_reader = image_reader_of(config, preprocessor_config)
    total = sum(weight.num_bytes for weight in weights)
    check_replaceable(folder)
    check_free_space(folder, total + SPACE_FOR_THE_REST)
    with atomic_folder(folder) as new:
        write_json(new / CONFIG, config.to_hf() | {"torch_dtype": main_dtype(weights)})
        _write_weights(new, _shards(weights, max_shard_bytes), total)
        if tokenizer is not None:
            tokenizer.save(new)
        write_companions(new, chat_template, generation_config, image_reader)
        write_lineage(new, lineage)


def image_reader_of(config: ModelConfig, settings: Mapping[str, Any] | None) -> ImageReader | None:
    """What a `preprocessor_config.json` says, or the defaults without one; None: the model reads no images.

    Raises:
        ConfigError: settings that cannot be honoured, or that do not fit the model.
    """
    reader_class = ARCHITECTURES.load(config.model_type).image_reader_class
    return None if reader_class is None else reader_class.from_hf(settings or {}, config)


def write_companions(
    folder: Path,
    chat_template: str | None,
    generation_config: Mapping[str, Any] | None,
    image_reader: ImageReader | None,
) -> None:
    """Write `chat_template.jinja`, `generation_config.json` and `preprocessor_config.json`, each if there is one."""
    if chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8", newline="")
    if generation_config:
        write_json(folder / GENERATION_CONFIG, generation_config)
    if image_reader is not None:
        write_json(folder / PREPROCESSOR_CONFIG, image_reader.to_hf())


def _shards(weights: Sequence[Weight], max_bytes: int) -> list[list[Weight]]:
    """Consecutive weights in groups of at most `max_bytes`, or of one weight."""
    shards: list[list[Weight]] = [[]]
    room = max_bytes
    for weight in weights:
        if shards[-1] and weight.num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(weight)
        room -= weight.num_bytes
    return shards


def _write_weights(folder: Path, shards: Sequence[Sequence[Weight]], total: int) -> None:
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [WEIGHTS]
    with progress("writing the weights", total) as shown:
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as file:
                write_safetensors(file, [(w.name, w.dtype, w.shape) for w in shard], reader(shard, shown), METADATA)
    if len(shards) > 1:
        weight_map = {weight.name: name for name, shard in zip(names, shards, strict=True) for weight in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def check_replaceable(folder: Path) -> None:
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


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as UTF-8 JSON, indented."""
    path.write_text(json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
