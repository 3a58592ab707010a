"""Training a vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from camelid.base.errors import TokenizerError
from camelid.tokenizer.tiktoken_bpe import TiktokenBPE
from camelid.tokenizer.train import SPECIAL_TOKENS, train_tokenizer

TEXT = (Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "LICENSE").read_text()


def test_bytes_come_first_then_merges_then_control_tokens() -> None:
    tokenizer = train_tokenizer([TEXT], 600)
    assert isinstance(tokenizer, TiktokenBPE)
    assert tokenizer.vocab_size == 600
    assert {len(tokenizer.token_bytes(i)) for i in range(256)} == {1}
    assert all(len(tokenizer.token_bytes(i)) > 1 for i in range(256, 584))
    assert tokenizer.special.ids == {name: 584 + i for i, name in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.special.bos == tokenizer.special.ids["<|begin_of_text|>"]
    assert tokenizer.special.add_bos


def test_what_occurs_often_becomes_one_token() -> None:
    tokenizer = train_tokenizer(["the llama and the camel\n" * 50], 300)
    assert len(tokenizer.encode(" llama")) == 1
    assert tokenizer.decode(tokenizer.encode("ünseen 🦙")) == "ünseen 🦙"


def test_merges_stay_inside_llama_3s_pattern() -> None:
    tokenizer = train_tokenizer(["2023 2023 2023 a.b a.b the end" * 50], 400)
    pieces = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size - len(SPECIAL_TOKENS))}
    assert b"202" in pieces
    assert b"2023" not in pieces
    assert b"a.b" not in pieces


def test_the_same_text_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer([TEXT], 500).save(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_rare_pairs_are_not_merged() -> None:
    assert train_tokenizer(["abcabc"], 300, min_frequency=3).vocab_size == 256 + len(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("vocab_size", "special", "message"),
    [(272, SPECIAL_TOKENS, "no room for merges"), (300, ["<a>", "<a>"], "comes twice")],
)
def test_settings_that_allow_no_vocabulary(vocab_size: int, special: list[str], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer([TEXT], vocab_size, special_tokens=special)
