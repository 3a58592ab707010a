"""`params.json` of a Meta release as the `config.json` it amounts to, and back.

A release's `params.json` leaves much to the reference code that came with it, and some of them are wrong (Llama 2's
list 8 key/value heads for 7B in one place). What the tensors tell is therefore taken from them: vocabulary, width of
the feed-forward layer, key/value heads. (llama-models, models/llama3/args.py; `params.json` of the releases.)
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import ConfigError, FormatError
from camelid.model.config import require_count, require_number
from camelid.model.rope import Llama3Rope

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from camelid.model.llama_config import LlamaConfig

PARAMS: Final = "params.json"

OTHER_MODELS: Final = {
    "vision_chunk_size": "a Llama 3.2 Vision model",
    "vision_num_cross_attention_layers": "a Llama 3.2 Vision model",
    "vision_model": "a Llama 3.2 Vision model",
    "vision_args": "a Llama 4 model",
    "quantization_args": "a quantised release",
    "lora_args": "a release with adapters",
}
"""A key that is set → what the folder holds then, which has another layout."""

LLAMA_3_VOCABULARY: Final = 128_256
LLAMA_3_ROPE: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What `use_scaled_rope` stands for, besides the factor (llama-models, models/llama3/model.py, apply_scaling)."""
SCALING_FACTOR: Final = "rope_scaling_factor"
"""Meta's name for it in Llama 4's files, which we write where the size does not tell it."""


@dataclass(frozen=True)
class Shapes:
    """What the tensors of a folder say, joined over its shards."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    key_rows: int
    """Rows of a key projection: key/value heads times head dimension."""
    tied: bool
    dtype: str


def config_from_params(params: Mapping[str, Any], shapes: Shapes, where: Path) -> dict[str, Any]:
    """The contents of a `config.json`.

    Args:
        params: the contents of `params.json`.
        shapes: of the tensors.
        where: names the file in messages.

    Raises:
        ConfigError: the folder holds a model of another layout.
        FormatError: a size is missing, impossible or contradicts the tensors.
    """
    for key, model in OTHER_MODELS.items():
        if params.get(key) not in (None, -1, {}):
            raise ConfigError(
                f"this is {model}, whose files from Meta are not supported",
                where=f"{where}, {key}",
                hint="take the model from its Hugging Face repository instead",
            )
    dim, num_layers, num_heads = (read_count(params, key, name, where) for key, name in _SIZES.items())
    if dim != shapes.hidden_size or dim % num_heads:
        raise FormatError(
            f"dim {dim} and {num_heads} heads do not fit tensors of {shapes.hidden_size} columns", where=where
        )
    stated = params.get("head_dim") is not None
    head_dim = read_count(params, "head_dim", "head_dim", where) if stated else dim // num_heads
    num_kv_heads, rest = divmod(shapes.key_rows, head_dim)
    if rest or not num_kv_heads or num_heads % num_kv_heads:
        raise FormatError(f"{shapes.key_rows} rows of keys are not whole heads of {head_dim}", where=where)
    _warn_of_contradictions(params, {"n_kv_heads": num_kv_heads, "vocab_size": shapes.vocab_size}, where)
    rope_theta, eps = (
        read_number(params, *setting, where) for setting in (("rope_theta", 10_000.0), ("norm_eps", 1e-5))
    )
    require_number("norm_eps", eps, above=0, at_most=1)
    bos, eos = (128_000, 128_001) if shapes.vocab_size == LLAMA_3_VOCABULARY else (1, 2)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shapes.vocab_size,
        "hidden_size": dim,
        "intermediate_size": shapes.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": _context(params, rope_theta, eps),
        "rms_norm_eps": eps,
        "rope_theta": rope_theta,
        "rope_scaling": _scaling(params, where),
        "tie_word_embeddings": shapes.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": shapes.dtype,
    }


def params_from_config(config: LlamaConfig) -> dict[str, Any]:
    """The contents of a `params.json` that Meta's reference code and camelid read as this model.

    Raises:
        ConfigError: the model has something that Meta's format has no place for.
    """
    rope = config.rope_parameters
    biases = config.attention_bias or config.mlp_bias
    scaled = rope.rope_type == "llama3"
    if biases or config.head_dim * config.num_attention_heads != config.hidden_size:
        what = "biases" if biases else f"heads of {config.head_dim}, not hidden_size / num_attention_heads"
        raise ConfigError(f"Meta's format has no place for {what}", hint="write a Hugging Face folder or a GGUF file")
    if (rope.rope_type != "default" and not scaled) or (
        scaled and any(getattr(rope, name) != value for name, value in LLAMA_3_ROPE.items())
    ):
        raise ConfigError(
            f"Meta's format has no place for this rope scaling: {rope.to_hf()['rope_scaling']}",
            where="rope_scaling",
            hint="write a Hugging Face folder",
        )
    multiple_of, multiplier = feed_forward_rule(config.hidden_size, config.intermediate_size)
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": rope.rope_theta,
    }
    if config.num_key_value_heads == config.num_attention_heads:
        del params["n_kv_heads"]  # which LLaMA 1's reference code does not know
    if multiplier is None:
        del params["ffn_dim_multiplier"]
    if rope.rope_theta == 10_000.0 and config.vocab_size == 32_000:
        del params["rope_theta"]  # neither LLaMA 1's nor Llama 2's does, and it is theirs without saying so
    if isinstance(rope, Llama3Rope):
        params["use_scaled_rope"] = True
        if rope.factor != _factor({"dim": config.hidden_size}):
            params[SCALING_FACTOR] = rope.factor
    return params


def feed_forward_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """The reference code's rule: two thirds of 4 · dim, times the multiplier, up to a multiple."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def feed_forward_rule(dim: int, width: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` that give a width; those of the releases where one of them does."""
    for multiple_of, multiplier in _RELEASED_RULES:
        if feed_forward_width(dim, multiple_of, multiplier) == width:
            return multiple_of, multiplier
    multiple_of = math.gcd(width, 256)
    # Amid the numbers that are rounded up to the width, so that no rounding of floats matters.
    multiplier = (width - multiple_of / 2 + 0.75) / int(2 * (4 * dim) / 3)
    assert feed_forward_width(dim, multiple_of, multiplier) == width
    return multiple_of, multiplier


_RELEASED_RULES: Final = ((256, None), (256, 1.5), (4096, 1.3), (1024, 1.3), (4096, 1.2))
_SIZES: Final = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}


def read_count(params: Mapping[str, Any], key: str, name: str, where: Path) -> int:
    """A size above zero, as large as the config's setting of that name may be.

    Raises:
        FormatError: there is none, or it is impossible.
    """
    if key not in params:
        raise FormatError(f"there is no '{key}'", where=where, hint="a params.json of another kind of model?")
    value: int = params[key]
    try:
        require_count(name, value)
    except ConfigError as error:
        raise FormatError(f"{key} is {value!r}", where=where) from error
    return value


def read_number(params: Mapping[str, Any], key: str, default: float, where: Path) -> float:
    """A finite number, or the default where there is none.

    Raises:
        FormatError: something else is there.
    """
    value = params.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise FormatError(f"{key} is {value!r}", where=where)
    return float(value)


def _warn_of_contradictions(params: Mapping[str, Any], told: Mapping[str, int], where: Path) -> None:
    for key, value in told.items():
        if params.get(key) not in (None, -1, value):
            warnings.warn(
                f"{where} says {key} = {params[key]}, but the tensors say {value}, which is taken",
                UserWarning,
                stacklevel=2,
            )


def _scaling(params: Mapping[str, Any], where: Path) -> dict[str, Any] | None:
    if not params.get("use_scaled_rope", False):
        return None
    return {
        "rope_type": "llama3",
        "factor": read_number(params, SCALING_FACTOR, _factor(params), where),
        **LLAMA_3_ROPE,
    }


def _factor(params: Mapping[str, Any]) -> float:
    """32 for Llama 3.2 1B and 3B, as their `config.json` has it; the reference code states 8 for all."""
    return 32.0 if params["dim"] in (2048, 3072) else 8.0


def _context(params: Mapping[str, Any], rope_theta: float, eps: float) -> int:
    """Positions of the release; no `params.json` states them."""
    if params.get("use_scaled_rope"):
        return 131_072
    if rope_theta == 500_000.0:
        return 8192
    if rope_theta == 1_000_000.0:
        return 16_384
    # LLaMA 1: epsilon 1e-6, or the 65B, which has as many key/value heads as heads.
    is_first = eps == 1e-6 or (params["n_heads"] == 64 and not params.get("n_kv_heads"))
    return 2048 if is_first else 4096
