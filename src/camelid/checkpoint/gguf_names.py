"""How GGUF spells an architecture: its tensors' names, its metadata keys, and which rows it interleaves.

Names: llama.cpp gguf-py/gguf/constants.py. A new architecture is one more entry of `GGUF_ARCHITECTURES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class GGUFArchitecture:
    """What tells a GGUF file of one architecture from a Hugging Face folder of it."""

    model_type: str
    """Of the `config.json`."""
    class_name: str
    """Under `architectures` of the `config.json`."""
    settings: Mapping[str, str]
    """Metadata key without the architecture's prefix → key of the `config.json`."""
    constants: Mapping[str, Any]
    """What every `config.json` of the architecture says and no GGUF file does."""
    names: Mapping[str, str]
    """GGUF's tensor name without ".weight" or ".bias" → Hugging Face's; "{layer}" stands for a number."""
    interleaved: Mapping[str, str]
    """Hugging Face name → the config key with its number of heads, for tensors whose rows rotate in adjacent pairs."""
    derived: frozenset[str]
    """Tensors that follow from the config, by GGUF's name."""


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
        constants={"hidden_act": "silu"},
        names={
            "token_embd": "model.embed_tokens",
            "output_norm": "model.norm",
            "output": "lm_head",
            "blk.{layer}.attn_norm": "model.layers.{layer}.input_layernorm",
            "blk.{layer}.attn_q": "model.layers.{layer}.self_attn.q_proj",
            "blk.{layer}.attn_k": "model.layers.{layer}.self_attn.k_proj",
            "blk.{layer}.attn_v": "model.layers.{layer}.self_attn.v_proj",
            "blk.{layer}.attn_output": "model.layers.{layer}.self_attn.o_proj",
            "blk.{layer}.ffn_norm": "model.layers.{layer}.post_attention_layernorm",
            "blk.{layer}.ffn_gate": "model.layers.{layer}.mlp.gate_proj",
            "blk.{layer}.ffn_up": "model.layers.{layer}.mlp.up_proj",
            "blk.{layer}.ffn_down": "model.layers.{layer}.mlp.down_proj",
        },
        interleaved={
            "model.layers.{layer}.self_attn.q_proj": "num_attention_heads",
            "model.layers.{layer}.self_attn.k_proj": "num_key_value_heads",
        },
        derived=frozenset({"rope_freqs", "blk.{layer}.attn_rot_embd"}),
    ),
}
"""`general.architecture` → how its files are read."""
