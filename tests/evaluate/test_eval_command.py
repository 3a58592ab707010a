"""`camelid eval` from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from camelid.cli.main import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["camelid", "eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_a_recipe_becomes_results(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the llama sleeps")
    (tmp_path / "mine.toml").write_text('model = "none"\n[[tasks]]\ntask = "bits_per_byte"\ntexts = ["a.txt"]\n')
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "mine.toml", "--set", f"model={model_folder}", "--set", "device=cpu") == 0
    said = capsys.readouterr()
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    value = results["results"][0]["measurement"]["metrics"][0]["value"]
    assert f"bits per byte {value:.4g}" in said.out
    assert "runs/mine/report.html" in said.out


def test_an_error_is_one_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text('model = "m"\n[[tasks]]\ntask = "bits"\n')
    assert run(monkeypatch, str(tmp_path / "bad.toml")) == 2
    said = capsys.readouterr().err
    assert "there is no evaluation task named 'bits'" in said
    assert "bits_per_byte" in said
