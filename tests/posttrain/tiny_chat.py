"""A base model of 60k parameters that has never spoken, and conversations that it can learn by heart."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from camelid.base.recipe import load_recipe
from camelid.checkpoint import save_huggingface
from camelid.model.llama import Llama, LlamaConfig
from camelid.posttrain.sft import SftRecipe
from camelid.tokenizer.train import train_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from camelid.tokenizer import Tokenizer

TALKS = [
    ("What is a llama?", "An animal of the Andes."),
    ("Who are you?", "I am a small model."),
    ("Good morning!", "Good morning to you."),
]
OVERRIDES = [
    "data.sequence_length=64",
    "data.batch_size=1",
    "training.optimizer.learning_rate=1e-2",
    "training.schedule.warmup_steps=2",
    "training.steps=8",
    "training.checkpoint_every=3",
    "device=cpu",
]


@cache
def tokenizer() -> Tokenizer:
    texts = [text for talk in TALKS for text in talk] * 4
    return train_tokenizer(texts, vocab_size=300, min_frequency=2)


def base_model(folder: Path, **changes: Any) -> Path:
    """Writes the base model: a tokenizer with Llama 3's control tokens, and no chat template."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = tokenizer().special
    config = LlamaConfig(
        vocab_size=tokenizer().vocab_size,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
        **sizes,
    )
    model = Llama.from_config(config)
    model.initialize(5)
    save_huggingface(model, folder, tokenizer=tokenizer(), **changes)
    return folder


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_talks(path: Path, talks: list[tuple[str, str]] | None = None) -> Path:
    rows = [json.dumps({"messages": messages(*talk)}) for talk in talks or TALKS]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def recipe(folder: Path, *overrides: str) -> SftRecipe:
    """The tiny run's recipe, on files that `folder` holds."""
    base, talks = folder / "base", folder / "talks.jsonl"
    if not base.exists():
        base_model(base)
    if not talks.exists():
        write_talks(talks)
    named = [f"model={base}", f"data.sources=[{json.dumps(str(talks))}]"]
    return load_recipe(SftRecipe, None, [*named, *OVERRIDES, *overrides])
