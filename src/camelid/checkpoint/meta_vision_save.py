"""Which tensors a Llama 3.2 Vision has in Meta's files, and what each is made of; `meta_save` writes them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import torch

from camelid.base.errors import ConfigError
from camelid.checkpoint import meta_params
from camelid.checkpoint.layer_names import split_layer
from camelid.checkpoint.meta import is_rotated, pairs
from camelid.checkpoint.meta_plan import PlannedTensor, parts
from camelid.checkpoint.meta_vision import (
    CROSS_LAYERS,
    EMBEDDING,
    ENCODER_HEADS,
    EXTRA,
    MOST_TILES,
    NUM_CROSSING,
    PATCHES,
    TABLES,
    TEXT,
    TILE_SIZE,
    VISION_NAMES,
    by_arrangement,
    by_place,
    crossing_layers,
    split_axis,
)
from camelid.model.mllama_config import EXTRA_EMBEDDINGS, MllamaConfig, MllamaVisionConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from camelid.checkpoint.weights import Weight

_RELEASED: Final = MllamaVisionConfig()
_TAKEN_FOR_GRANTED: Final = ("attention_heads", "intermediate_layers_indices", "norm_eps")
"""Settings of the image encoder that nothing in the files tells."""
_OF_METAS_CODE: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_global_layers",
    "patch_size",
    "max_num_tiles",
)
"""Its sizes, which camelid takes from the tensors and Meta's code from itself."""

_CROSSING: Final = {ours: theirs for theirs, (ours, _) in VISION_NAMES.items() if theirs.startswith(CROSS_LAYERS)}
_OTHERS: Final = {ours: theirs for theirs, (ours, _) in VISION_NAMES.items() if not theirs.startswith(CROSS_LAYERS)}

_log = logging.getLogger("camelid")


def params_from_config(config: MllamaConfig) -> dict[str, Any]:
    """The contents of a `params.json` that Meta's reference code and camelid read as this model.

    Raises:
        ConfigError: the model has something that Meta's format has no place for.
    """
    backbone, crossed, vision = config.num_cached_layers, config.cross_attention_layers, config.vision
    for fits, what in (
        (crossed and crossed == crossing_layers(backbone, len(crossed)), f"layers that attend to images at {crossed}"),
        (config.image_token_index == config.vocab_size, f"{config.image_token_index} as the image token"),
        *(
            (value == getattr(_RELEASED, name), f"{name} {value}")
            for name, value in _values(vision, _TAKEN_FOR_GRANTED)
        ),
    ):
        if not fits:
            raise ConfigError(
                f"Meta's format of Llama 3.2 Vision has no place for {what}", hint="write a Hugging Face folder"
            )
    odd = [f"{name} {value}" for name, value in _values(vision, _OF_METAS_CODE) if value != getattr(_RELEASED, name)]
    if odd:
        _log.warning("Meta's own code reads no image encoder of %s; camelid does", ", ".join(odd))
    return {
        **meta_params.params_from_config(config.backbone),
        TILE_SIZE: vision.image_size,
        MOST_TILES: vision.max_num_tiles,
        NUM_CROSSING: len(crossed),
    }


def _values(vision: MllamaVisionConfig, names: Sequence[str]) -> list[tuple[str, object]]:
    return [(name, getattr(vision, name)) for name in names]


def cut_sizes(config: MllamaConfig) -> dict[str, int]:
    """What shards cut: what it is → how many there are of it."""
    return {
        "key/value heads": config.num_key_value_heads,
        "rows of the feed-forward layer": config.intermediate_size,
        "tokens of the vocabulary": config.vocab_size,
        "extra embeddings": EXTRA_EMBEDDINGS,
        "heads of the image encoder": ENCODER_HEADS,
        "rows of its feed-forward layer": config.vision.intermediate_size,
    }


def plan(weights: Sequence[Weight], config: MllamaConfig) -> list[PlannedTensor]:
    """Every tensor of Meta's files, in the model's order.

    Raises:
        ConfigError: the same tile has several vectors, for which Meta's tables have no place.
    """
    planned = []
    for weight in weights:
        if weight.name.endswith(TABLES):
            _check_table(weight, config)
        name, axis = _meta_name(weight.name, config)
        planned.append(PlannedTensor(name, (weight,), _cut(_in_metas_form(weight.name, config), axis)))
        if weight.name == EMBEDDING:
            extra, axis = _meta_name(EXTRA, config)
            planned.append(PlannedTensor(extra, (weight,), _cut(lambda rows: rows[config.vocab_size :], axis)))
    return planned


def _meta_name(name: str, config: MllamaConfig) -> tuple[str, int | None]:
    """Meta's name of a tensor, and the dimension that its shards split."""
    names = _OTHERS
    pattern, layer = split_layer(name)
    if name.startswith(TEXT) and layer:
        crossed = config.cross_attention_layers
        number, before = int(layer), sum(crossing < int(layer) for crossing in crossed)
        names, layer = (_CROSSING, str(before)) if number in crossed else (_OTHERS, str(number - before))
    leaf = next(leaf for leaf in ("", ".weight", ".bias") if pattern.removesuffix(leaf) in names)
    theirs = names[pattern.removesuffix(leaf)]
    return theirs.format(layer=layer) + leaf, split_axis(VISION_NAMES[theirs][1], leaf)


def _in_metas_form(name: str, config: MllamaConfig) -> Callable[[Tensor], Tensor]:
    """What makes of Hugging Face's tensor of this name Meta's, as a whole."""
    if name == EMBEDDING:
        return lambda rows: rows[: config.vocab_size]
    if name == PATCHES:
        return lambda filters: filters.flatten(1)
    if name.endswith(TABLES):
        return lambda rows: by_place(rows, config.vision)
    if name.startswith(TEXT) and is_rotated(name.removeprefix(TEXT)):
        return lambda rows: pairs(rows, config.head_dim)
    return lambda tensor: tensor


def _cut(
    in_metas_form: Callable[[Tensor], Tensor], axis: int | None
) -> Callable[[Sequence[Tensor], int], Sequence[Tensor]]:
    def cut(tensors: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        return parts(in_metas_form(tensors[0]), axis, count)

    return cut


def _check_table(weight: Weight, config: MllamaConfig) -> None:
    rows = weight.read()
    same = torch.equal(by_arrangement(by_place(rows, config.vision), config.vision.arrangements), rows)
    weight.release()
    if not same:
        raise ConfigError(
            "Meta's files have one vector for a tile's place, whatever the arrangement of tiles; here they differ",
            where=weight.name,
            hint="write a Hugging Face folder",
        )
