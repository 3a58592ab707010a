"""A vocab.json with its merges.txt, as of GPT-2 and OPT, and the tokenizer.json that transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from camelid.base.errors import TokenizerError
from camelid.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["Hello world", "  two  spaces\n\n'tis 1234 café ☺", "they'll run, re-run and RUN", "", "a\tb\r\n"]

OPT_SETTINGS = {
    "errors": "replace",
    "unk_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    "bos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    "pad_token": {"__type": "AddedToken", "content": "<pad>", "normalized": True},
    "add_prefix_space": False,
    "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer",
}
"""As OPT's folders have them: one token begins, ends and stands for the unknown."""


@pytest.fixture(scope="module")
def opt_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary in OPT's order of control tokens."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS * 3, trainer)
    folder = tmp_path_factory.mktemp("opt")
    library.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(OPT_SETTINGS))
    return folder


def copy_of(folder: Path, new: Path, **settings: Any) -> Path:
    new.mkdir()
    for file in folder.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    (new / "tokenizer_config.json").write_text(json.dumps({**OPT_SETTINGS, **settings}))
    return new


def test_opt_begins_with_its_end_token(opt_files: Path) -> None:
    special = load_tokenizer(opt_files).special

    assert special.add_bos
    assert (special.bos, special.eos, special.pad) == (2, 2, 1)


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_ids_are_those_of_transformers(form: str, opt_files: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(opt_files)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer((opt_files if form == "vocab.json" else tmp_path) / form)

    for text in TEXTS:
        assert ours.encode(text, bos=ours.special.add_bos) == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("a</s>b", bos=True, allow_special=True) == theirs("a</s>b").input_ids


def test_what_is_saved_is_read_again(opt_files: Path, tmp_path: Path) -> None:
    first = load_tokenizer(opt_files)
    first.save(tmp_path)
    again: Tokenizer = load_tokenizer(tmp_path)

    assert (tmp_path / "tokenizer.json").is_file()
    assert again.special == first.special
    assert [again.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]


def test_without_add_bos_token_nothing_is_put_first(opt_files: Path, tmp_path: Path) -> None:
    folder = copy_of(opt_files, tmp_path / "gpt2", add_bos_token=False)

    assert not load_tokenizer(folder).special.add_bos


def test_added_tokens_lie_beyond_the_vocabulary(opt_files: Path, tmp_path: Path) -> None:
    folder = copy_of(opt_files, tmp_path / "more")
    size = load_tokenizer(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": size}))

    tokenizer = load_tokenizer(folder)

    assert tokenizer.vocab_size == size + 1
    assert tokenizer.decode([size]) == "<extra>"


def test_a_class_that_splits_otherwise_is_refused(opt_files: Path, tmp_path: Path) -> None:
    folder = copy_of(opt_files, tmp_path / "clip", tokenizer_class="CLIPTokenizer")

    with pytest.raises(TokenizerError, match="CLIPTokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("merges", [b"#version: 0.2\nnot a merge\n", b"\xff\xfe", b"#version: 0.2\nq\xc4\xa0 zzz\n"])
def test_broken_merges_are_refused(merges: bytes, opt_files: Path, tmp_path: Path) -> None:
    folder = copy_of(opt_files, tmp_path / "broken")
    (folder / "merges.txt").write_bytes(merges)

    with pytest.raises(TokenizerError):
        load_tokenizer(folder)


def test_a_vocabulary_without_merges_is_refused(opt_files: Path, tmp_path: Path) -> None:
    folder = copy_of(opt_files, tmp_path / "half")
    (folder / "merges.txt").unlink()

    with pytest.raises(TokenizerError, match="no 'model'") as caught:
        load_tokenizer(folder)
    assert "merges.txt" in str(caught.value.hint)
