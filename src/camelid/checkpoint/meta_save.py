"""Write a checkpoint as Meta releases one: `params.json`, `consolidated.NN.pth`, `tokenizer.model`.

with closing(open_checkpoint(Path("folder"))) as checkpoint:
    save_meta(checkpoint, Path("meta"), model_parallel=2, tokenizer=checkpoint.load_tokenizer())
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import ConfigError
from camelid.base.files import atomic_folder, check_free_space
from camelid.base.progress import progress
from camelid.checkpoint.huggingface import CONFIG
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.lineage import write_lineage
from camelid.checkpoint.meta import NAMES, is_rotated, pairs
from camelid.checkpoint.meta_folder import MOST_SHARDS, TOKENIZER
from camelid.checkpoint.meta_params import LLAMA_3_VOCABULARY, PARAMS, params_from_config
from camelid.checkpoint.meta_plan import PlannedTensor, parts
from camelid.checkpoint.save import SPACE_FOR_THE_REST, check_replaceable, image_reader_of, write_companions, write_json
from camelid.checkpoint.torch_zip import writing_torch_file
from camelid.checkpoint.weights import main_dtype, weights_of_checkpoint
from camelid.model.llama4_config import Llama4Config
from camelid.model.llama_config import LlamaConfig
from camelid.model.mllama_config import MllamaConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from camelid.base.progress import Progress
    from camelid.checkpoint.base import Checkpoint
    from camelid.checkpoint.weights import Weight
    from camelid.tokenizer import Tokenizer


_META_NAMES: Final = {theirs: (ours, axis) for ours, (theirs, axis) in NAMES.items()}
_EMBEDDING: Final = "model.embed_tokens"

_log = logging.getLogger("camelid")


def save_meta(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    model_parallel: int = 1,
    dtype: torch.dtype | None = None,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    preprocessor_config: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that Meta's reference code and camelid read; it appears only once it is complete.

    All shards are written at once, tensor by tensor, so a model needs no memory beyond its largest tensor. A
    `config.json` beside `params.json` keeps what the latter has no place for: context, end tokens, initialisation.
    A tied output matrix is written out, as the reference code expects it.

    Args:
        checkpoint: an open checkpoint of any format.
        folder: a folder that does not exist, is empty, or holds nothing but an earlier save; that one is replaced.
        model_parallel: number of shards, at most 16; must divide the key/value heads, vocabulary and layer widths.
        dtype: of the written weights; None: each as it is, packed ones as float32.
        tokenizer: written as `tokenizer.model`; one that has no such form as `tokenizer.json`, with a warning.
        chat_template: the Jinja template; Meta's code has its own, camelid reads this one.
        generation_config: the contents of `generation_config.json`, for camelid as well.
        preprocessor_config: the contents of `preprocessor_config.json`, likewise, of a model that reads images.
        lineage: facts for `lineage.json` beside the version and the files' hashes.

    Raises:
        ConfigError: the model is no Llama, has what the format has no place for, or cannot be cut into so many shards.
        FormatError: the checkpoint lacks a tensor or has one too many.
        ResourceError: not enough disk space; the folder is as it was.
    """
    folder = folder.resolve()
    config, weights = weights_of_checkpoint(checkpoint, dtype)
    if isinstance(config, Llama4Config):
        from camelid.checkpoint import meta_llama4_save as llama4

        params, sizes = llama4.params_from_config(config), llama4.cut_sizes(config)
        plan = llama4.plan(weights, config)
    elif isinstance(config, MllamaConfig):
        from camelid.checkpoint import meta_vision_save as vision

        params, sizes = vision.params_from_config(config), vision.cut_sizes(config)
        plan = vision.plan(weights, config)
    elif isinstance(config, LlamaConfig):
        params, sizes = params_from_config(config), _cut_sizes(config)
        plan = _plan(weights, config)
    else:
        raise ConfigError(
            f"Meta's format has no place for the architecture '{config.model_type}'",
            where=checkpoint.path,
            hint="write a Hugging Face folder",
        )
    _check_divisible(sizes, model_parallel)
    image_reader = image_reader_of(config, preprocessor_config)
    check_replaceable(folder)
    total = sum(tensor.num_bytes(model_parallel) for tensor in plan)
    check_free_space(folder, total + SPACE_FOR_THE_REST)
    with atomic_folder(folder) as new:
        with progress("writing the weights", total) as shown:
            _write_shards(new, plan, model_parallel, shown)
        write_json(new / PARAMS, params)
        write_json(new / CONFIG, config.to_hf() | {"torch_dtype": main_dtype(weights)})
        if tokenizer is not None:
            _save_tokenizer(tokenizer, new)
        write_companions(new, chat_template, generation_config, image_reader)
        write_lineage(new, lineage)


def _cut_sizes(config: LlamaConfig) -> dict[str, int]:
    return {
        "key/value heads": config.num_key_value_heads,
        "rows of the feed-forward layer": config.intermediate_size,
        "tokens of the vocabulary": config.vocab_size,
        "columns of the embedding": config.hidden_size,
    }


def _check_divisible(sizes: Mapping[str, int], model_parallel: int) -> None:
    if model_parallel > MOST_SHARDS:
        raise ConfigError(
            f"{model_parallel} shards are more than the {MOST_SHARDS} of any release", where="model_parallel"
        )
    for what, size in sizes.items():
        if model_parallel < 1 or size % model_parallel:
            raise ConfigError(
                f"{size} {what} cannot be cut into {model_parallel} shards",
                where="model_parallel",
                hint=f"at most {math.gcd(*sizes.values())} fit this model",
            )


def _plan(weights: Sequence[Weight], config: LlamaConfig) -> list[PlannedTensor]:
    plan = []
    for weight in weights:
        pattern, layer = split_layer(weight.name.removesuffix(".weight"))
        meta_name, axis = _META_NAMES[pattern]
        by_columns = pattern == _EMBEDDING and config.vocab_size < LLAMA_3_VOCABULARY  # before Llama 3
        plan.append(_planned(f"{meta_name.format(layer=layer)}.weight", weight, 1 if by_columns else axis, config))
        if pattern == _EMBEDDING and config.tie_word_embeddings:
            plan.append(_planned("output.weight", weight, 0, config))
    return plan


def _planned(name: str, weight: Weight, axis: int | None, config: LlamaConfig) -> PlannedTensor:
    def cut(tensors: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        tensor = pairs(tensors[0], config.head_dim) if is_rotated(weight.name) else tensors[0]
        return parts(tensor, axis, count)

    return PlannedTensor(name, (weight,), cut)


def _write_shards(folder: Path, plan: Sequence[PlannedTensor], count: int, shown: Progress) -> None:
    described = {tensor.name: (tensor.dtype, tensor.part_shape(count)) for tensor in plan}
    with ExitStack() as stack:
        shards = []
        for rank in range(count):
            root = f"consolidated.{rank:02}"
            file = stack.enter_context((folder / f"{root}.pth").open("wb"))
            shards.append(stack.enter_context(writing_torch_file(file, root, described)))
        for tensor in plan:
            for add, part in zip(shards, tensor.cut([weight.read() for weight in tensor.sources], count), strict=True):
                add(part)
            for weight in tensor.sources:
                weight.release()
            shown.advance(tensor.num_bytes(count))


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    from camelid.tokenizer.meta_save import meta_tokenizer_model

    content = meta_tokenizer_model(tokenizer)
    if content is not None:
        (folder / TOKENIZER).write_bytes(content)
        return
    tokenizer.save(folder)
    _log.warning(
        "this tokenizer has no form that Meta's code reads: it is written as tokenizer.json, which camelid reads"
    )
