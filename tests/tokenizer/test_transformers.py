"""What `save` writes, transformers opens and gives the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from camelid.tokenizer import Tokenizer, load_tokenizer
from camelid.tokenizer.train import train_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "Hello world, it's 2023!  Two spaces.\n\n\ttab",
    " leading and trailing ",
    "café ☺ 🦙 中文 \u00a0 e\u0301",
    "a" + " " * 37 + "b",
    "<|eot_id|> <s> </s> <|im_end|> <|endoftext|>",
    "",
]


def opened(folder: Path, tokenizer: Tokenizer) -> object:
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def check(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = opened(folder, tokenizer)
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)
        expected = tokenizer.encode(text, bos=tokenizer.special.add_bos, allow_special=True)
        assert theirs.encode(text) == expected
    special = tokenizer.special
    roles = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    assert roles == (special.bos, special.eos, special.pad, special.unk)
    assert len(theirs) == tokenizer.vocab_size
    again = load_tokenizer(folder)
    assert again.special == special
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("name", ["gpt2", "llama2", "smollm2"])
def test_saved_vocabularies(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    check(tmp_path, request.getfixturevalue(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_vocabularies_converted_from_tiktoken(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    check(tmp_path, request.getfixturevalue(name))


def test_a_trained_vocabulary(tmp_path: Path) -> None:
    check(tmp_path, train_tokenizer(TEXTS * 20, 400))
