"""A tiny model in a folder with a trained tokenizer, and made-up documents."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from camelid.checkpoint.save import save_huggingface
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer import Tokenizer
from camelid.tokenizer.train import train_tokenizer

WORDS = str.split("der the river llama sleeps under a warm hill und über 駱駝 while camels walk slowly home again")


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Texts of 1 to 120 words, no two the same."""
    generator = random.Random(0)
    lengths = [1, 120, *(generator.randint(2, 60) for _ in range(38))]
    return [f"{number} " + " ".join(generator.choices(WORDS, k=length)) for number, length in enumerate(lengths)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 300)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Llama:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    model = Llama.from_config(config)
    model.initialize(seed=0)
    return model.eval()


@pytest.fixture(scope="session")
def model_folder(model: Llama, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_huggingface(model, folder, tokenizer=tokenizer, lineage={"recipe": "none"})
    return folder
