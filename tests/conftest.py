"""A whole language model small enough for every test: bytes as tokens, random weights, a ChatML template."""

from __future__ import annotations

import pytest

from byte_tokenizer import ByteTokenizer
from camelid.llm import LLM

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def tiny_llm(byte_tokenizer: ByteTokenizer) -> LLM:
    from camelid.model.llama import Llama, LlamaConfig

    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=160,
        initializer_range=0.3,
    )
    model = Llama.from_config(config)
    model.initialize(seed=0)
    return LLM(model, byte_tokenizer, chat_template=CHATML)
