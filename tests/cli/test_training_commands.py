"""From text to a model that answers, by the commands of docs/how-to/pretrain.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny_chat

import camelid
from camelid.base.recipe import load_recipe
from camelid.cli.main import main
from camelid.data.prepare import PrepareRecipe
from camelid.data.train_tokenizer import TokenizerRecipe
from camelid.evaluate import EvaluateRecipe
from camelid.pipeline.recipe import PipelineRecipe
from camelid.posttrain.sft import SftRecipe
from camelid.train.pretrain import PretrainRecipe

RECIPES = Path(__file__).parent.parent.parent / "recipes"
SENTENCES = [f"The {animal} {verb} near the {place}." for animal in ("llama", "camel", "alpaca", "vicuna")
             for verb in ("sleeps", "eats", "walks") for place in ("river", "hill", "road", "house")]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["camelid", *arguments])
    main()


def test_the_recipes_that_come_along_are_valid() -> None:
    schemas = {
        "tokenizer": TokenizerRecipe,
        "prepare": PrepareRecipe,
        "pretrain": PretrainRecipe,
        "sft": SftRecipe,
        "evaluate": EvaluateRecipe,
        "ladder": PipelineRecipe,
        "cria": PipelineRecipe,
    }
    assert {path.stem for path in RECIPES.glob("*.toml")} == set(schemas)
    for name, schema in schemas.items():
        load_recipe(schema, RECIPES / f"{name}.toml")


def test_text_becomes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        (text / f"{number}.txt").write_text("\n".join(SENTENCES[number:] + SENTENCES[:number]))
    try:
        with pytest.raises(SystemExit, match="0"):
            run(
                monkeypatch,
                "tokenizer",
                "train",
                f"{RECIPES}/tokenizer.toml",
                "--set",
                "sources=['text/*.txt']",
                "--set",
                "vocab_size=340",
            )
        with pytest.raises(SystemExit, match="0"):
            run(
                monkeypatch,
                "prepare",
                f"{RECIPES}/prepare.toml",
                "--set",
                "clean.sources=['text']",
                "--set",
                "validation_share=0.0",
            )
        with pytest.raises(SystemExit, match="0"):
            run(monkeypatch, "data", "show", "runs/shards", "--sequence-length", "32")
        settings = ("steps=30", "checkpoint_every=10", "schedule.warmup_steps=3")
        overrides = [part for setting in settings for part in ("--set", f"training.{setting}")]
        with pytest.raises(SystemExit, match="0"):
            run(monkeypatch, "pretrain", f"{RECIPES}/pretrain.toml", *overrides)
    finally:
        said = capsys.readouterr()
    assert "llama" in said.out
    assert "finished at step 30" in said.out
    model = tmp_path / "runs" / "pretrain" / "checkpoints" / "step-00000030" / "model"
    reply = camelid.load(model, device="cpu").generate("The llama", max_tokens=8)
    assert len(reply.token_ids) == 8 or reply.finish_reason == "stop"
    first, last = (
        float(line.split("loss ")[1].split()[0])
        for line in said.err.splitlines()
        if "step 1/30" in line or "step 30/30" in line
    )
    assert last < first / 2


def test_conversations_are_shown_as_a_model_would_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = '{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}\n'
    (tmp_path / "talks.jsonl").write_text(talk)
    model = tiny_chat.base_model(tmp_path / "model")
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "data", "show", f"{tmp_path}/talks.jsonl", "--model", str(model))
    shown = capsys.readouterr().out
    assert "\x1b[30;42m" in shown
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "data", "show", f"{tmp_path}/talks.jsonl")
    assert "--model" in capsys.readouterr().err
