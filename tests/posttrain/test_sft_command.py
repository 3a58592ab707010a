"""`camelid sft`, as it is typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_chat import TALKS, base_model, write_talks

import camelid
from camelid.cli.main import main

RECIPE = """
model = "base"
epochs = 3.0
device = "cpu"

[data]
sources = ["talks.jsonl", {files = "more/*.jsonl", repeats = 2}]
sequence_length = 64
batch_size = 2

[training.schedule]
warmup_steps = 1
"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["camelid", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base_model(tmp_path / "base")
    write_talks(tmp_path / "talks.jsonl", TALKS[:2])
    (tmp_path / "more").mkdir()
    write_talks(tmp_path / "more" / "one.jsonl", TALKS[2:])
    (tmp_path / "friendly.toml").write_text(RECIPE)
    return tmp_path


def test_a_recipe_becomes_a_model_that_chats(workplace: Path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "sft", "friendly.toml") == 0
    said = capsys.readouterr()
    model = Path(said.out.removeprefix("finished at step 5: ").strip())
    assert model == Path("runs/friendly/checkpoints/step-00000005/model")
    assert "conversations: 4 conversations" in said.err
    assert camelid.load(model, device="cpu").generate([{"role": "user", "content": "Hi"}], max_tokens=3).token_ids


def test_the_same_command_finds_its_finished_run(workplace: Path, monkeypatch, capsys) -> None:
    run(monkeypatch, "sft", "friendly.toml", "-o", "run")
    before = capsys.readouterr().out
    assert run(monkeypatch, "sft", "friendly.toml", "-o", "run") == 0
    assert capsys.readouterr().out == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=['x']", "unknown key 'data.source'"),
        ("training.stepps=3", "unknown key 'training.stepps'"),
        ("training.steps=3", "epochs and training.steps exclude each other"),
        ("data.sources=[{files='talks.jsonl', weight=2}]", "unknown key"),
        ("model='nowhere'", "nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    workplace: Path, monkeypatch, capsys, setting: str, message: str
) -> None:
    assert run(monkeypatch, "sft", "friendly.toml", "--set", setting) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("error: ") == 1
    assert not (workplace / "runs").exists()


def test_a_bad_row_is_named_by_file_and_line(workplace: Path, monkeypatch, capsys) -> None:
    with (workplace / "talks.jsonl").open("a") as file:
        file.write('{"messages": "Hi"}\n')
    assert run(monkeypatch, "sft", "friendly.toml") == 2
    assert "talks.jsonl:3" in capsys.readouterr().err
