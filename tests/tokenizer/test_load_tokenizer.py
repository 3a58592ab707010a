"""`load_tokenizer` knows a vocabulary by its content, and says what is wrong with what is none."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import camelid
from camelid.base.errors import NotFoundError, TokenizerError
from camelid.tokenizer import Tokenizer, load_tokenizer
from camelid.tokenizer.train import train_tokenizer

MODEL = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"


def test_names_do_not_matter(tmp_path: Path, gguf_folder: Path, llama2: Tokenizer, gpt2: Tokenizer) -> None:
    trained = train_tokenizer(["some text"], 300)
    trained.save(tmp_path / "trained")
    shutil.copy(tmp_path / "trained" / "tokenizer.json", tmp_path / "a.model")
    shutil.copy(MODEL, tmp_path / "b.json")
    shutil.copy(gguf_folder / "gpt-2.gguf", tmp_path / "c")
    text = "Hello world"
    assert load_tokenizer(tmp_path / "a.model").encode(text) == trained.encode(text)
    assert camelid.load_tokenizer(str(tmp_path / "b.json")).encode(text) == llama2.encode(text)
    assert load_tokenizer(tmp_path / "c").encode(text) == gpt2.encode(text)


def test_a_tiktoken_file_is_known_without_its_name(llama3_file: Path, llama3: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "ranks").symlink_to(llama3_file)
    assert load_tokenizer(tmp_path / "ranks").special == llama3.special


def test_in_a_folder_tokenizer_json_comes_first(tmp_path: Path, gguf_folder: Path, gpt2: Tokenizer) -> None:
    shutil.copy(gguf_folder / "gpt-2.gguf", tmp_path / "model.gguf")
    assert load_tokenizer(tmp_path).encode("Hello") == gpt2.encode("Hello")
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path).vocab_size == 32_000
    train_tokenizer(["some text"], 300).save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size < 300


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no vocabulary in this folder") as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value.hint)


def test_several_gguf_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(TokenizerError, match=r"a\.gguf, b\.gguf"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello", "no vocabulary that camelid knows"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html>", "web page"),
        (b"YQ== 0\nYg== 1\n", "2 ranks is not known"),
    ],
)
def test_files_that_are_no_vocabulary(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.model" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"YWI 2", "not a base64 token and its rank"),
        (b"YW$I= 2", "not a base64 token and its rank"),
        (b"YWI= two", "not a base64 token and its rank"),
        (b"YWI=", "not a base64 token and its rank"),
        (b"YWI= 1", "the rank 1 comes twice"),
        (b"YQ== 2", "the token of line 1 comes twice"),
    ],
)
def test_a_broken_line_of_a_tiktoken_file(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg== 1\n" + line + b"\n")
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where is not None
    assert caught.value.where.endswith("tokenizer.model, line 3")


def test_a_missing_rank(tmp_path: Path) -> None:
    lines = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256) if byte != 7]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    with pytest.raises(TokenizerError, match="no line has the rank 7"):
        load_tokenizer(tmp_path)


def test_only_the_needed_library_is_imported(gguf_folder: Path) -> None:
    code = (
        "import sys, camelid.tokenizer\n"
        "assert not {'tiktoken', 'tokenizers', 'sentencepiece', 'numpy'} & set(sys.modules)\n"
        "camelid.tokenizer.load_tokenizer(sys.argv[1]).encode('Hello')\n"
        "assert not {'torch', 'tokenizers', 'sentencepiece', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(gguf_folder / "gpt-2.gguf")], check=True)
