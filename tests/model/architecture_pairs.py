"""Tiny models of every architecture beside transformers' with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from camelid.model import ARCHITECTURES
from camelid.model.attention import PackedContext
from camelid.model.base import LanguageModel

VOCAB_SIZE = 128

OPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "init_std": 0.2,
}
LLAMA4 = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 40,
    "intermediate_size_mlp": 72,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "attention_chunk_size": 16,
    "floor_scale": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
"""Chunks and temperature steps far shorter than the sequences, so that both show in the logits."""

SCOUT_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", OPT),
    "opt-350m": ("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt without a last norm": ("opt", {**OPT, "_remove_final_layer_norm": True}),
    "opt untied": ("opt", {**OPT, "tie_word_embeddings": False}),
    "galactica": (
        "opt",
        {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
    "llama4": ("llama4_text", LLAMA4),
    "llama4 scout": ("llama4_text", {**LLAMA4, "rope_parameters": SCOUT_ROPE}),
    "llama4 maverick": ("llama4_text", {**LLAMA4, "interleave_moe_layer_step": 2, "use_qk_norm": False}),
    "llama4 two experts a token": ("llama4_text", {**LLAMA4, "num_experts_per_tok": 2}),
    "llama4 without temperature": ("llama4_text", {**LLAMA4, "attn_temperature_tuning": False}),
    "llama4 layers by name": (
        "llama4_text",
        {**LLAMA4, "moe_layers": [0, 3], "no_rope_layers": [0, 1, 0, 1, 1], "attention_bias": True},
    ),
}
"""Name → model type, and a config in transformers' spelling; transformers' own defaults for the rest."""


@dataclass(frozen=True)
class Pair:
    """One set of weights in both implementations."""

    ours: LanguageModel
    theirs: Any

    def their_logits(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.theirs(ids[None]).logits[0]
        return logits

    def our_logits(self, ids: torch.Tensor) -> torch.Tensor:
        context = PackedContext([len(ids)])
        return self.ours.logits(self.ours(ids, context.positions(), context))


def make_pair(variant: str, seed: int = 0) -> Pair:
    """Both models, every parameter drawn at random: transformers' defaults of 0 and 1 would hide a mistake."""
    transformers = pytest.importorskip("transformers")
    model_type, settings = VARIANTS[variant]
    torch.manual_seed(seed)
    their_config = transformers.AutoConfig.for_model(model_type, **settings)
    theirs = transformers.AutoModelForCausalLM.from_config(their_config, attn_implementation="eager").eval()
    spread = settings.get("initializer_range") or settings["init_std"]
    for name, parameter in theirs.named_parameters():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, centre, spread)
    architecture = ARCHITECTURES.load(model_type)
    ours = architecture.from_config(architecture.config_class.from_hf(their_config.to_dict())).eval()
    weights = theirs.state_dict()
    if ours.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights, strict=True)
    return Pair(ours, theirs)
