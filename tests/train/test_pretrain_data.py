"""Pretraining from the folder that `camelid prepare` fills."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pytest

import camelid
from camelid.base.errors import CamelidError, FormatError, NotFoundError, RecipeError, TokenizerError
from camelid.base.recipe import load_recipe
from camelid.checkpoint import save_huggingface
from camelid.data.prepare import TOKENIZER
from camelid.data.shards import write_shards
from camelid.model.llama import Llama, LlamaConfig
from camelid.tokenizer import Tokenizer
from camelid.tokenizer.train import train_tokenizer
from camelid.train.metrics import read_metrics
from camelid.train.pretrain import PretrainRecipe, pretrain

TEXTS = [f"The {animal} {verb} near the river." for animal in ("llama", "camel", "alpaca", "vicuna")
         for verb in ("sleeps", "eats", "walks")]  # fmt: skip


@cache
def tokenizer(vocab_size: int = 290) -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=vocab_size, min_frequency=2)


def shards(folder: Path, *, validation_share: float = 0.0) -> Path:
    write_shards(TEXTS, tokenizer(), folder, validation_share=validation_share, num_threads=1)
    tokenizer().save(folder / TOKENIZER)
    return folder


def shape(**changes: int) -> dict[str, int]:
    sizes = {"vocab_size": 290, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    return {**sizes, "num_attention_heads": 2, "max_position_embeddings": 64, **changes}


def recipe(shards: Path, *overrides: str, **sizes: int) -> PretrainRecipe:
    model = [f"model.shape.{name}={value}" for name, value in shape(**sizes).items()]
    if any(override.startswith("model.") for override in overrides):
        model = []
    fixed = [
        *(f"data.shards={shards}", "data.sequence_length=32", "data.batch_size=2", "device=cpu"),
        *("training.steps=4", "training.schedule.warmup_steps=1"),
    ]
    return load_recipe(PretrainRecipe, None, [*model, *fixed, *overrides])


def test_shards_become_a_model_that_goes_on_with_a_text(tmp_path: Path) -> None:
    result = pretrain(recipe(shards(tmp_path / "shards")), tmp_path / "run")
    llm = camelid.load(result.checkpoint / "model", device="cpu")
    assert llm.tokenizer.encode(TEXTS[0]) == tokenizer().encode(TEXTS[0])
    assert len(llm.generate("The llama", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_a_model_from_scratch_ends_where_its_tokenizer_does(tmp_path: Path) -> None:
    model = pretrain(recipe(shards(tmp_path / "shards")), tmp_path / "run").checkpoint / "model"
    special = tokenizer().special
    expected = {"bos_token_id": special.bos, "eos_token_id": special.eos}
    assert json.loads((model / "generation_config.json").read_text()) == expected
    config = json.loads((model / "config.json").read_text())
    assert {name: config[name] for name in expected} == expected


def test_what_was_held_out_is_measured(tmp_path: Path) -> None:
    pretrain(recipe(shards(tmp_path / "shards", validation_share=0.3)), tmp_path / "run")
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [s.validation_bits_per_byte is not None for s in steps] == [False, False, False, True]
    assert steps[-1].validation_loss == pytest.approx(steps[-1].loss, rel=0.2)


def test_samples_go_on_from_a_text(tmp_path: Path) -> None:
    settings = ("training.sample_every=2", 'training.sample_prompts=["The camel"]', "training.sample_tokens=4")
    pretrain(recipe(shards(tmp_path / "shards"), *settings), tmp_path / "run")
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [(2, "The camel"), (4, "The camel")]


def other_model(folder: Path, tokenizer: Tokenizer | None, **changes: int) -> Path:
    model = Llama.from_config(LlamaConfig(**shape(**changes)))
    model.initialize(1)
    save_huggingface(model, folder, tokenizer=tokenizer)
    return folder


def test_a_checkpoint_goes_on_with_its_own_vocabulary(tmp_path: Path) -> None:
    parent = other_model(tmp_path / "parent", tokenizer())
    assert pretrain(recipe(shards(tmp_path / "shards"), f"model.checkpoint={parent}"), tmp_path / "run").finished


def test_shards_of_another_vocabulary_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    parent = other_model(tmp_path / "parent", tokenizer(285))
    given = recipe(shards(tmp_path / "shards"), f"model.checkpoint={parent}")
    with pytest.raises(TokenizerError, match=r"another vocabulary \(of 290 tokens\) than the checkpoint's \(of 285\)"):
        pretrain(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / TOKENIZER)


def another_tokenizer(folder: Path) -> None:
    no_tokenizer(folder)
    tokenizer(285).save(folder / TOKENIZER)


def half_a_manifest(folder: Path) -> None:
    manifest = next(folder.glob("*.json"))
    manifest.write_text(manifest.read_text()[:100])


def a_cut_file(folder: Path) -> None:
    path = next(folder.glob("*.tokens"))
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, NotFoundError, "no folder of token shards"),
        (no_tokenizer, CamelidError, "tokenizer"),
        (another_tokenizer, TokenizerError, "another vocabulary"),
        (half_a_manifest, FormatError, "manifest"),
        (a_cut_file, FormatError, "bytes where the manifest says"),
    ],
)
def test_damaged_shards_are_refused_before_anything_is_written(tmp_path: Path, damage, error, message: str) -> None:
    damage(shards(tmp_path / "shards"))
    with pytest.raises(error, match=message):
        pretrain(recipe(tmp_path / "shards"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_shape_that_does_not_fit_the_shards_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    with pytest.raises(RecipeError, match="the tokenizer has 290 entries and the model only 200"):
        pretrain(recipe(folder, vocab_size=200), tmp_path / "run")
    with pytest.raises(RecipeError, match="32 tokens are more than the 16 positions"):
        pretrain(recipe(folder, max_position_embeddings=16), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_other_shards_is_another_run(tmp_path: Path) -> None:
    pretrain(recipe(shards(tmp_path / "shards")), tmp_path / "run")
    write_shards(TEXTS[:6], tokenizer(), tmp_path / "others", num_threads=1)
    tokenizer().save(tmp_path / "others" / TOKENIZER)
    with pytest.raises(RecipeError, match="belongs to another run: data was"):
        pretrain(recipe(tmp_path / "others"), tmp_path / "run")
