"""How GGUF spells an architecture: its tensors' names, its metadata keys, and which rows it interleaves.

Names: llama.cpp gguf-py/gguf/constants.py; Llama 4's keys and its fixed settings: src/models/llama4.cpp and
conversion/llama.py, as of llama-cpp-python 0.3.36. A new architecture is one more entry of `GGUF_ARCHITECTURES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Scaling: TypeAlias = tuple[float, float, int]
"""low_freq_factor, high_freq_factor and original context of Llama 3's scaling of rotary frequencies."""


@dataclass(frozen=True)
class GGUFArchitecture:
    """What tells a GGUF file of one architecture from a Hugging Face folder of it."""

    model_type: str
    """Of the `config.json`."""
    class_name: str
    """Under `architectures` of the `config.json`."""
    settings: Mapping[str, str]
    """Metadata key without the architecture's prefix → key of the `config.json`."""
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """From the config as `settings` gives it: what else a `config.json` says and no GGUF file does, because every
    reader takes it for granted. A model that differs is not written."""
    fixed: Mapping[str, int]
    """Metadata keys that may be there, but only with this value."""
    names: Mapping[str, str]
    """GGUF's tensor name without ".weight" or ".bias" → Hugging Face's; "{layer}" stands for a number."""
    interleaved: Mapping[str, str]
    """Hugging Face name → the config key with its number of heads, for tensors whose rows rotate in adjacent pairs."""
    derived: frozenset[str]
    """Tensors that follow from the config, by GGUF's name."""
    scalings: tuple[Scaling, ...]
    """Of the releases, the likeliest first."""
    experts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Hugging Face name of all experts' matrices, which has no ".weight" → GGUF's names of its parts: see
    `gguf_experts`."""
    precise: frozenset[str] = frozenset()
    """GGUF's names of matrices that are float32 in every file."""


FLOATS: Final = frozenset({"rope_theta", "rms_norm_eps"})
"""The settings that are no whole numbers."""

LLAMA_3_SCALING: Final[Scaling] = (1.0, 4.0, 8192)
"""Of Llama 3.1 to 3.3."""
LLAMA_4_SCALING: Final[Scaling] = (1.0, 1.0, 8192)
"""Of Llama 4 Scout (llama-models, models/llama4/args.py)."""

LLAMA_4_CHUNK: Final = 8192
"""Positions of an attention chunk, which no file states."""

_LAYER: Final = "model.layers.{layer}"

_AROUND_AND_ATTENTION: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{layer}.attn_norm": f"{_LAYER}.input_layernorm",
    "blk.{layer}.attn_q": f"{_LAYER}.self_attn.q_proj",
    "blk.{layer}.attn_k": f"{_LAYER}.self_attn.k_proj",
    "blk.{layer}.attn_v": f"{_LAYER}.self_attn.v_proj",
    "blk.{layer}.attn_output": f"{_LAYER}.self_attn.o_proj",
}


def _llama_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's src/models/llama4.cpp computes with, whatever the file."""
    num_layers, step = config["num_hidden_layers"], config["interleave_moe_layer_step"]
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_chunk_size": LLAMA_4_CHUNK,
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(num_layers)],
        "moe_layers": list(range(step - 1, num_layers, step)),
        # It knows Maverick, which has no norm there, by its experts.
        "use_qk_norm": config["num_local_experts"] != 128,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": 8192,
    }


GGUF_ARCHITECTURES: Final[Mapping[str, GGUFArchitecture]] = {
    "llama": GGUFArchitecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        settings={
            "embedding_length": "hidden_size",
            "feed_forward_length": "intermediate_size",
            "block_count": "num_hidden_layers",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_key_value_heads",
            "attention.key_length": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "context_length": "max_position_embeddings",
            "rope.freq_base": "rope_theta",
        },
        implied=lambda config: {"hidden_act": "silu"},
        fixed={"expert_count": 0},
        names={
            **_AROUND_AND_ATTENTION,
            "blk.{layer}.ffn_norm": f"{_LAYER}.post_attention_layernorm",
            "blk.{layer}.ffn_gate": f"{_LAYER}.mlp.gate_proj",
            "blk.{layer}.ffn_up": f"{_LAYER}.mlp.up_proj",
            "blk.{layer}.ffn_down": f"{_LAYER}.mlp.down_proj",
        },
        interleaved={
            f"{_LAYER}.self_attn.q_proj": "num_attention_heads",
            f"{_LAYER}.self_attn.k_proj": "num_key_value_heads",
        },
        derived=frozenset({"rope_freqs", "blk.{layer}.attn_rot_embd"}),
        scalings=(LLAMA_3_SCALING,),
    ),
    "llama4": GGUFArchitecture(
        model_type="llama4_text",
        class_name="Llama4ForCausalLM",
        settings={
            "embedding_length": "hidden_size",
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
            "block_count": "num_hidden_layers",
            "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_key_value_heads",
            "attention.key_length": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "context_length": "max_position_embeddings",
            "rope.freq_base": "rope_theta",
        },
        implied=_llama_4,
        fixed={"attention.sliding_window": LLAMA_4_CHUNK},
        names={
            **_AROUND_AND_ATTENTION,
            "blk.{layer}.ffn_norm": f"{_LAYER}.post_attention_layernorm",
            "blk.{layer}.ffn_gate": f"{_LAYER}.feed_forward.gate_proj",
            "blk.{layer}.ffn_up": f"{_LAYER}.feed_forward.up_proj",
            "blk.{layer}.ffn_down": f"{_LAYER}.feed_forward.down_proj",
            "blk.{layer}.ffn_gate_inp": f"{_LAYER}.feed_forward.router",
            "blk.{layer}.ffn_gate_shexp": f"{_LAYER}.feed_forward.shared_expert.gate_proj",
            "blk.{layer}.ffn_up_shexp": f"{_LAYER}.feed_forward.shared_expert.up_proj",
            "blk.{layer}.ffn_down_shexp": f"{_LAYER}.feed_forward.shared_expert.down_proj",
        },
        interleaved={},  # both rotate adjacent pairs
        derived=frozenset({"rope_freqs", "blk.{layer}.attn_rot_embd"}),
        scalings=(LLAMA_4_SCALING, LLAMA_3_SCALING),
        experts={
            f"{_LAYER}.feed_forward.experts.gate_up_proj": ("blk.{layer}.ffn_gate_exps", "blk.{layer}.ffn_up_exps"),
            f"{_LAYER}.feed_forward.experts.down_proj": ("blk.{layer}.ffn_down_exps",),
        },
        precise=frozenset({"blk.{layer}.ffn_gate_inp"}),
    ),
}
"""`general.architecture` → how its files are read."""
