"""Training a vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from camelid.base.errors import NotFoundError, RecipeError, TokenizerError
from camelid.base.recipe import load_recipe
from camelid.tokenizer import load_tokenizer
from camelid.tokenizer.tiktoken_bpe import TiktokenBPE
from camelid.tokenizer.train import SPECIAL_TOKENS, TokenizerRecipe, train_from_recipe, train_tokenizer

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


def test_a_recipe_reads_files_and_writes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    (tmp_path / "texts" / "b.txt").write_text("the llama\n" * 200)
    (tmp_path / "recipe.toml").write_text(f'inputs = ["{tmp_path}/texts/*.txt"]\noutput = "{tmp_path}/new"\n')
    recipe = load_recipe(TokenizerRecipe, tmp_path / "recipe.toml", ["vocab_size=600"])
    folder = train_from_recipe(recipe)
    assert folder == tmp_path / "new"
    expected = train_tokenizer([TEXT, "the llama\n" * 200], 600)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special == expected.special
    assert tokenizer.encode("the llama license") == expected.encode("the llama license")


def test_too_little_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("ab ab")
    train_from_recipe(TokenizerRecipe(inputs=(str(tmp_path / "a.txt"),), output=tmp_path / "new", vocab_size=500))
    assert "only 273 of 500 tokens" in capsys.readouterr().err


def test_recipe_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="vocab_size"):
        load_recipe(TokenizerRecipe, None, ["inputs=['x']", "output='y'", "vocab_sizes=3"])
    missing = TokenizerRecipe(inputs=(f"{tmp_path}/*.txt",), output=tmp_path / "new")
    with pytest.raises(NotFoundError, match=r"no file matches"):
        train_from_recipe(missing)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(TokenizerError, match="not UTF-8") as caught:
        train_from_recipe(missing)
    assert "latin.txt" in str(caught.value)
