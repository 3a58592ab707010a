"""`params.json` of a Llama 4 release as the `config.json` it amounts to, and back.

Source: llama-models, models/llama4/args.py. What it leaves out is what the reference code takes then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from camelid.base.errors import ConfigError, FormatError
from camelid.checkpoint.meta_params import feed_forward_rule, feed_forward_width, read_count, read_number
from camelid.model.rope import Llama3Rope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from camelid.model.llama4_config import Llama4Config

CONTEXT: Final = 262_144
"""Of the base models; a `config.json` beside says how far an instruct model reaches."""

_ORIGINAL_CONTEXT: Final = 8192
_SCOUT: Final = {"rope_scaling_factor": 16.0, "rope_high_freq_factor": 1.0}
"""What `use_scaled_rope` stands for where the file does not say; the low factor is 1, the original context 8192."""


@dataclass(frozen=True)
class Shapes:
    """What the tensors say, joined over the shards."""

    vocab_size: int
    hidden_size: int
    dense_width: int | None
    """Of a feed-forward layer without experts; None: every layer has them."""
    expert_width: int
    layers_with_experts: Sequence[int]
    tied: bool
    dtype: str


def config_from_params(params: Mapping[str, Any], shapes: Shapes, where: Path) -> dict[str, Any]:
    """The contents of a `config.json`.

    Raises:
        ConfigError: a setting that no Llama 4 has.
        FormatError: a size is missing, impossible or contradicts the tensors.
    """
    dim, num_layers, num_heads, num_kv_heads = (
        read_count(params, key, name, where)
        for key, name in (
            ("dim", "hidden_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
            ("n_kv_heads", "num_key_value_heads"),
        )
    )
    if dim != shapes.hidden_size:
        raise FormatError(f"dim {dim} does not fit tensors of {shapes.hidden_size} columns", where=where)
    experts = moe_args(params, where)
    dense_width = shapes.dense_width or feed_forward_width(
        dim,
        read_count(params, "multiple_of", "intermediate_size", where),
        read_number(params, "ffn_dim_multiplier", 1.0, where),
    )
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "vocab_size": shapes.vocab_size,
        "hidden_size": dim,
        "intermediate_size": shapes.expert_width,
        "intermediate_size_mlp": dense_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": dim // num_heads,
        "num_local_experts": read_count(experts, "num_experts", "num_hidden_layers", where),
        "num_experts_per_tok": read_count({"top_k": 1, **experts}, "top_k", "num_hidden_layers", where),
        "interleave_moe_layer_step": read_count(
            {"interleave_moe_layer_step": 1, **experts}, "interleave_moe_layer_step", "num_hidden_layers", where
        ),
        "moe_layers": list(shapes.layers_with_experts),
        **_layers_with_rope(params, num_layers, where),
        # Attention that is not chunked reaches as far as a chunk of the whole context.
        "attention_chunk_size": params.get("attention_chunk_size") or CONTEXT,
        "use_qk_norm": params.get("use_qk_norm", False),
        "attn_temperature_tuning": params.get("attn_temperature_tuning", False),
        "floor_scale": int(read_number(params, "floor_scale", 8192.0, where)),
        "attn_scale": read_number(params, "attn_scale", 0.1, where),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": read_number(params, "norm_eps", 1e-5, where),
        "rope_theta": read_number(params, "rope_theta", 500_000.0, where),
        "rope_scaling": _scaling(params, where),
        "tie_word_embeddings": shapes.tied,
        "bos_token_id": 200_000,
        "eos_token_id": 200_001,
        "pad_token_id": 200_018,
        "torch_dtype": shapes.dtype,
    }


def moe_args(params: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    """The settings of the experts.

    Raises:
        ConfigError: there are none: a dense model, as Llama Guard 4 is.
    """
    experts = params.get("moe_args")
    if not isinstance(experts, dict):
        raise ConfigError("a Llama 4 without experts is not supported", where=f"{where}, moe_args")
    return experts


def params_from_config(config: Llama4Config) -> dict[str, Any]:
    """The contents of a `params.json` that Meta's reference code and camelid read as this model.

    Raises:
        ConfigError: the model has something that Meta's format has no place for.
    """
    step, rope = config.interleave_moe_layer_step, config.rope_parameters
    layers = range(config.num_hidden_layers)
    nope = [layer + 1 for layer, turning in enumerate(config.layers_with_rope) if not turning]
    interval = nope[0] if nope else None
    scaled = isinstance(rope, Llama3Rope)
    plain = rope.rope_type == "default" or (
        isinstance(rope, Llama3Rope)
        and (rope.low_freq_factor, rope.original_max_position_embeddings) == (1.0, _ORIGINAL_CONTEXT)
    )
    multiple_of, multiplier = feed_forward_rule(config.hidden_size, config.intermediate_size_mlp)
    for fits, what in (
        (config.layers_with_experts == tuple(layers[step - 1 :: step]), "experts in layers that no step gives"),
        (nope == [layer + 1 for layer in layers if interval and (layer + 1) % interval == 0], "such no_rope_layers"),
        (plain, f"this rope scaling: {rope.to_hf()['rope_scaling']}"),
        (not config.attention_bias, "biases"),
        (not config.tie_word_embeddings, "an output matrix that is the embedding"),
        (config.head_dim * config.num_attention_heads == config.hidden_size, f"heads of {config.head_dim}"),
    ):
        if not fits:
            raise ConfigError(f"Meta's format of Llama 4 has no place for {what}", hint="write a Hugging Face folder")
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "ffn_exp": 4.0,
        "norm_eps": config.rms_norm_eps,
        "attention_chunk_size": config.attention_chunk_size,
        "rope_theta": rope.rope_theta,
        "use_scaled_rope": scaled,
        "nope_layer_interval": interval,
        "use_qk_norm": config.use_qk_norm,
        "attn_temperature_tuning": config.attn_temperature_tuning,
        "floor_scale": float(config.floor_scale),
        "attn_scale": config.attn_scale,
        "moe_args": {
            "num_experts": config.num_local_experts,
            "top_k": config.num_experts_per_tok,
            "interleave_moe_layer_step": step,
        },
    }
    if isinstance(rope, Llama3Rope):
        params |= {"rope_scaling_factor": rope.factor, "rope_high_freq_factor": rope.high_freq_factor}
    return params


def _scaling(params: Mapping[str, Any], where: Path) -> dict[str, Any] | None:
    if not params.get("use_scaled_rope", False):
        return None
    factor, high = (read_number(params, key, value, where) for key, value in _SCOUT.items())
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    }


def _layers_with_rope(params: Mapping[str, Any], num_layers: int, where: Path) -> dict[str, Any]:
    interval = params.get("nope_layer_interval")
    if interval is None:
        return {"no_rope_layers": [1] * num_layers}
    return {"no_rope_layer_interval": read_count(params, "nope_layer_interval", "num_hidden_layers", where)}
