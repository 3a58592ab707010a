"""Learning a tokenizer from the files that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from camelid.base.errors import FormatError, NotFoundError, RecipeError
from camelid.base.recipe import load_recipe
from camelid.data.train_tokenizer import TokenizerRecipe, train_from_recipe
from camelid.tokenizer import load_tokenizer
from camelid.tokenizer.train import train_tokenizer

TEXT = (Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "LICENSE").read_text(encoding="utf-8")


def test_a_recipe_reads_files_and_writes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    (tmp_path / "texts" / "b.txt").write_text("the llama\n" * 200)
    (tmp_path / "recipe.toml").write_text(f'sources = ["{tmp_path}/texts/*.txt"]\noutput = "{tmp_path}/new"\n')
    recipe = load_recipe(TokenizerRecipe, tmp_path / "recipe.toml", ["vocab_size=600"])
    folder = train_from_recipe(recipe)
    assert folder == tmp_path / "new"
    expected = train_tokenizer([TEXT, "the llama\n" * 200], 600)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special == expected.special
    assert tokenizer.encode("the llama license") == expected.encode("the llama license")


def test_too_little_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("ab ab")
    train_from_recipe(TokenizerRecipe(sources=(str(tmp_path / "a.txt"),), output=tmp_path / "new", vocab_size=500))
    assert "only 273 of 500 tokens" in capsys.readouterr().err


def test_recipe_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="vocab_size"):
        load_recipe(TokenizerRecipe, None, ["sources=['x']", "output='y'", "vocab_sizes=3"])
    missing = TokenizerRecipe(sources=(f"{tmp_path}/*.txt",), output=tmp_path / "new")
    with pytest.raises(NotFoundError, match=r"matches no file"):
        train_from_recipe(missing)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(FormatError, match="not UTF-8") as caught:
        train_from_recipe(missing)
    assert "latin.txt" in str(caught.value)


def test_packed_rows_and_plain_text_give_the_same_tokenizer(tmp_path: Path) -> None:
    pieces = TEXT.split("\n\n")
    rows = "".join(json.dumps({"body": piece}) + "\n" for piece in pieces).encode()
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(rows))
    recipe = TokenizerRecipe(
        sources=(str(tmp_path / "rows.jsonl.zst"),), text_field="body", output=tmp_path / "new", vocab_size=600
    )
    tokenizer = load_tokenizer(train_from_recipe(recipe))
    assert tokenizer.encode(TEXT) == train_tokenizer(pieces, 600).encode(TEXT)
