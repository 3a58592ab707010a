"""A tiny model as a llama2.c file, written as its export script writes it."""

from __future__ import annotations

import struct
from dataclasses import replace

from meta_folder import meta_tensors
from tiny import tiny_config

from camelid.model.llama import Llama

ORDER = (
    "attention_norm",
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "ffn_norm",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)


def tiny(*, tied: bool = False, kv_heads: int = 2) -> Llama:
    config = replace(tiny_config(tied=tied), num_key_value_heads=kv_heads, rms_norm_eps=1e-5)
    model = Llama.from_config(config)
    model.initialize(seed=9)
    return model


def llama2_c_file(model: Llama) -> bytes:
    config, held = model.config, meta_tensors(model)
    vocab = config.vocab_size if config.tie_word_embeddings else -config.vocab_size
    sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    content = struct.pack("<7i", *sizes, config.num_key_value_heads, vocab, config.max_position_embeddings)
    layers = range(config.num_hidden_layers)
    names = ["tok_embeddings", *(f"layers.{layer}.{part}" for part in ORDER for layer in layers), "norm"]
    content += b"".join(held[f"{name}.weight"].detach().numpy().tobytes() for name in names)
    content += bytes(4 * config.max_position_embeddings * config.head_dim)
    if not config.tie_word_embeddings:
        content += held["output.weight"].detach().numpy().tobytes()
    return content
