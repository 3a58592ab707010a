"""Which tensor of a quantised GGUF file gets which format: llama.cpp's mixtures (src/llama-quant.cpp).

A mixture has one format for most matrices and a better one for the few that cost least and matter most: the values'
projection, the feed-forward layer's last matrix, and the output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from camelid.base.errors import ConfigError, did_you_mean
from camelid.base.gguf_header import GGML_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Shape:
    """What the choice of formats depends on, beside the tensor itself."""

    num_layers: int
    queries_per_key: int
    """Query heads for each key/value head."""
    tied: bool
    """The token embedding is the output too."""


@dataclass(frozen=True)
class Mix:
    """One mixture."""

    file_type: int
    """`general.file_type`."""
    format: str
    """Of every matrix without a rule."""
    rules: Mapping[str, Callable[[int, Shape], str | None]] = field(default_factory=dict)
    """GGUF's name of a layer's matrix → from the layer's number its format; None: the mixture's own."""


def _always(format: str) -> Callable[[int, Shape], str]:
    return lambda layer, shape: format


def _first(format: str, part: int, otherwise: str | None = None) -> Callable[[int, Shape], str | None]:
    """The first 1/part of the layers, rounded down."""
    return lambda layer, shape: format if layer < shape.num_layers // part else otherwise


def _below(format: str, count: int, otherwise: str | None = None) -> Callable[[int, Shape], str | None]:
    """The first `count` layers."""
    return lambda layer, shape: format if layer < count else otherwise


def _grouped(format: str, otherwise: str | None = None) -> Callable[[int, Shape], str | None]:
    """Where at least four query heads share a value head, so that its matrix is small."""
    return lambda layer, shape: format if shape.queries_per_key >= 4 else otherwise


def _where_it_matters(layer: int, shape: Shape) -> str | None:
    """Q6_K for the first and the last eighth of the layers, and for every third between."""
    eighth = shape.num_layers // 8
    chosen = layer < eighth or layer >= 7 * shape.num_layers // 8 or (layer - eighth) % 3 == 2
    return "q6_k" if chosen else None


_MATTERS: Final = {"attn_v": _where_it_matters, "ffn_down": _where_it_matters}

MIXES: Final[Mapping[str, Mix]] = {
    "q2_k": Mix(
        10, "q2_k", {"attn_v": _grouped("q4_k", "q3_k"), "ffn_down": _always("q3_k"), "attn_output": _always("q3_k")}
    ),
    "q3_k_s": Mix(11, "q3_k"),
    "q3_k_m": Mix(
        12,
        "q3_k",
        {"attn_v": _below("q5_k", 2, "q4_k"), "ffn_down": _first("q5_k", 16, "q4_k"), "attn_output": _always("q4_k")},
    ),
    "q3_k_l": Mix(13, "q3_k", {"attn_v": _always("q5_k"), "ffn_down": _always("q5_k"), "attn_output": _always("q5_k")}),
    "q4_0": Mix(2, "q4_0"),
    "q4_1": Mix(3, "q4_1"),
    "q4_k_s": Mix(14, "q4_k", {"attn_v": _below("q5_k", 4), "ffn_down": _first("q5_k", 8)}),
    "q4_k_m": Mix(15, "q4_k", _MATTERS),
    "q5_0": Mix(8, "q5_0"),
    "q5_1": Mix(9, "q5_1"),
    "q5_k_s": Mix(16, "q5_k"),
    "q5_k_m": Mix(17, "q5_k", _MATTERS),
    "q6_k": Mix(18, "q6_k"),
    "q8_0": Mix(7, "q8_0"),
    "iq4_nl": Mix(25, "iq4_nl", {"attn_v": _grouped("q5_k"), "ffn_down": _first("q5_k", 8)}),
}
"""What `quantize` can be → the mixture."""

DENSE_FILE_TYPES: Final = {"float32": 0, "float16": 1, "bfloat16": 32}
"""`general.file_type` of files that are not quantised."""

FALLBACKS: Final = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""A format in blocks of 256 → the one in blocks of 32 for rows that are no multiple of 256."""

_RULE_OF: Final = {"ffn_down_exps": "ffn_down", "ffn_down_shexp": "ffn_down"}
"""Experts' matrices → the rule that they follow."""

_BLOCK_SIZES: Final = {kind.name.lower(): kind.block_size for kind in GGML_TYPES.values()}
_LAYERS_OF_70B: Final = 80


def find_mix(name: str) -> Mix:
    """The mixture of that name, in any case.

    Raises:
        ConfigError: there is none.
    """
    if name.lower() not in MIXES:
        raise ConfigError(f"unknown quantisation '{name}'", where="quantize", hint=did_you_mean(name.lower(), MIXES))
    return MIXES[name.lower()]


def choose_format(mix: Mix, part: str, layer: int | None, num_columns: int, shape: Shape) -> str:
    """The format of one matrix, "float16" where no format in blocks fits its rows.

    Args:
        mix: the mixture.
        part: GGUF's name without the layer and ".weight": "attn_v", "token_embd".
        layer: the layer's number; None outside of the layers.
        num_columns: elements of a row.
        shape: the model's.
    """
    chosen = _wanted(mix, part, layer, num_columns, shape)
    if num_columns % _BLOCK_SIZES[chosen]:
        chosen = FALLBACKS.get(chosen, chosen)
    return chosen if num_columns % _BLOCK_SIZES[chosen] == 0 else "float16"


def _wanted(mix: Mix, part: str, layer: int | None, num_columns: int, shape: Shape) -> str:
    if part == "output" or (part == "token_embd" and shape.tied):
        return "q8_0" if mix.format == "q8_0" or num_columns % _BLOCK_SIZES[mix.format] else "q6_k"
    rule = mix.rules.get(_RULE_OF.get(part, part))
    chosen = (rule(layer, shape) if rule and layer is not None else None) or mix.format
    is_70b = shape.num_layers == _LAYERS_OF_70B and shape.queries_per_key > 1
    if part == "attn_v" and is_70b and chosen in ("q3_k", "q4_k"):
        return "q5_k"
    return chosen
