from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from prose import prose

from camelid.base.errors import NotFoundError, RecipeError
from camelid.data.decontaminate import Decontaminate
from camelid.data.document import Document
from camelid.data.steps import Dropped

QUESTION = (
    "A train leaves the station at nine in the morning and travels sixty kilometres an hour for three hours; "
    "how far has it come by noon?"
)


def evaluation_file(folder: Path, rows: list[dict[str, object]], name: str = "questions.jsonl.gz") -> str:
    path = folder / name
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def judged(recipe: Decontaminate, text: str) -> Dropped | Document:
    return recipe.build()(Document(text, "id", "file"))


def test_a_document_with_a_question_in_it_is_dropped_and_the_match_is_shown(tmp_path: Path) -> None:
    recipe = Decontaminate(against=(evaluation_file(tmp_path, [{"question": QUESTION}]),))

    # Case, punctuation and line ends are not what hides a copy.
    disguised = QUESTION.upper().replace(" ", "  ").replace(";", "\n")
    dropped = judged(recipe, f"{prose(1)}\n{disguised}\n{prose(2)}")

    assert isinstance(dropped, Dropped)
    assert dropped.rule == "contaminated"
    assert "questions.jsonl.gz" in dropped.detail
    assert "a train leaves the station" in dropped.detail


def test_thirteen_words_in_a_row_are_a_match_and_twelve_are_not(tmp_path: Path) -> None:
    recipe = Decontaminate(against=(evaluation_file(tmp_path, [{"question": QUESTION}]),))
    words = QUESTION.split()

    assert isinstance(judged(recipe, f"{prose(1)} {' '.join(words[3:16])} {prose(2)}"), Dropped)
    assert isinstance(judged(recipe, f"{prose(1)} {' '.join(words[3:15])} {prose(2)}"), Document)


def test_short_examples_shorten_the_ngram_down_to_eight_words(tmp_path: Path) -> None:
    nine, seven = "which of these nine words comes first of all", "what is the capital city of France"
    rows: list[dict[str, object]] = [{"question": nine, "choices": {"text": ["yes", seven]}, "answer": 3}]
    recipe = Decontaminate(against=(evaluation_file(tmp_path, rows),))

    assert isinstance(judged(recipe, f"{prose(1)} {nine} {prose(2)}"), Dropped)
    assert isinstance(judged(recipe, f"{prose(1)} {seven} {prose(2)}"), Document)


def test_every_file_has_its_own_length_and_is_named(tmp_path: Path) -> None:
    short = "eight words are enough for this short question"
    recipe = Decontaminate(
        against=(
            evaluation_file(tmp_path, [{"q": short}], "short.jsonl.gz"),
            evaluation_file(tmp_path, [{"nested": [{"deep": QUESTION}]}], "long.jsonl.gz"),
        )
    )
    for text, name in ((short, "short.jsonl.gz"), (QUESTION, "long.jsonl.gz")):
        dropped = judged(recipe, text)
        assert isinstance(dropped, Dropped)
        assert name in dropped.detail


def test_a_file_that_cannot_protect_anything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="8 words"):
        Decontaminate(against=(evaluation_file(tmp_path, [{"q": "too short"}]),)).build()
    with pytest.raises(NotFoundError):
        Decontaminate(against=(str(tmp_path / "missing.jsonl"),)).build()
