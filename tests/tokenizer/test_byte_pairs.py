"""When merging by rank is the same as a list of merges."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.tokenizer import merge_proof
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import (
    BYTE_ALPHABET,
    BytePairModel,
    every_cut,
    spell,
    tokenizer_json,
    unspell,
)
from camelid.tokenizer.hf_json import on_tiktoken
from camelid.tokenizer.merge_proof import rank_order
from camelid.tokenizer.split_patterns import GPT2

Merges = list[tuple[str, str]]


def model_of(merges: Merges, *, ignore_merges: bool = False, extra: Sequence[str] = ()) -> BytePairModel:
    tokens = dict.fromkeys([*BYTE_ALPHABET, *(left + right for left, right in merges), *extra])
    return BytePairModel({token: i for i, token in enumerate(tokens)}, merges, (GPT2,), ignore_merges)


def library_ids(model: BytePairModel, text: str) -> list[int]:
    ids: list[int] = tokenizers.Tokenizer.from_str(tokenizer_json(model, SpecialTokens())).encode(text).ids
    return ids


def test_bytes_are_spelled_as_gpt_2_spells_them() -> None:
    assert spell(b"a \n\xc3") == "aĠĊÃ"
    assert all(unspell(spell(bytes([byte]))) == bytes([byte]) for byte in range(256))
    with pytest.raises(UnicodeEncodeError):
        unspell("中")


def test_merges_that_were_trained_are_proven() -> None:
    merges = [("a", "b"), ("c", "d"), ("ab", "cd")]
    assert rank_order(model_of(merges)) == [*BYTE_ALPHABET, "ab", "cd", "abcd"]


@pytest.mark.parametrize(
    "merges",
    [
        pytest.param([("b", "c"), ("a", "b"), ("ab", "c")], id="bc comes before ab, so ab c is never met"),
        pytest.param([("a", "b"), ("b", "c"), ("a", "bc")], id="ab comes before bc, so a bc is never met"),
        pytest.param([("ab", "c"), ("a", "b")], id="a half is made later"),
        pytest.param([("a", "a"), ("a", "aa")], id="equal pairs merge from the left"),
        pytest.param([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")], id="two merges make one token"),
    ],
)
def test_merges_that_rank_would_not_follow_are_not_proven(merges: Merges) -> None:
    assert rank_order(model_of(merges)) is None


def test_every_cut_listed_is_proven_only_if_whole_tokens_are_taken() -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"bc", b"abc", b"xyz"]
    merges = every_cut(tokens)
    assert merges == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    made_whole = model_of(merges, ignore_merges=True)
    assert rank_order(made_whole) is not None
    assert rank_order(model_of(merges)) is None
    assert rank_order(model_of(merges[:-1], ignore_merges=True)) is None
    assert rank_order(model_of(merges, ignore_merges=True, extra=["xyz"])) is None


def random_merges(seed: int, *, trained: bool) -> Merges:
    """Merges over three letters: in the order in which pairs were drawn, or of random halves."""
    rng = random.Random(seed)
    known = list("abc")
    merges: Merges = []
    for _ in range(rng.randrange(1, 9)):
        left, right = rng.choice(known), rng.choice(known)
        if left + right in known:
            continue
        merges.append((left, right))
        known.append(left + right)
    if not trained:
        rng.shuffle(merges)
    return merges


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 10**6), trained=st.booleans(), text=st.text("abc", max_size=14))
def test_what_is_proven_agrees_with_the_library(seed: int, trained: bool, text: str) -> None:
    model = model_of(random_merges(seed, trained=trained))
    special = SpecialTokens()
    tokenizer = on_tiktoken(model, special, lambda: tokenizer_json(model, special))
    if tokenizer is not None:
        assert tokenizer.encode(text) == library_ids(model, text)


def test_random_merges_are_proven_and_refused() -> None:
    """The property above would be empty if all were refused, and toothless if none were."""
    verdicts = [rank_order(model_of(random_merges(seed, trained=True))) is not None for seed in range(200)]
    assert 20 < sum(verdicts) < 180


def test_a_refused_list_really_differs_from_ranks() -> None:
    """Rank would merge 'b'+'c' first here and then 'a'+'bc', which the list does not hold."""
    model = model_of([("b", "c"), ("a", "b"), ("ab", "c")])
    assert rank_order(model) is None
    assert library_ids(model, "abc") == [model.vocab["a"], model.vocab["bc"]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAMELID_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(merge_proof, "MERGES_WORTH_REMEMBERING", 0)
    return tmp_path / "home"


def no_proof(*_: object) -> bool:
    raise AssertionError("proven again")


@pytest.mark.parametrize("merges", [[("a", "b")], [("b", "c"), ("a", "b"), ("ab", "c")]])
def test_the_verdict_on_a_large_vocabulary_is_remembered(
    merges: Merges, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rank_order(model_of(merges))
    with monkeypatch.context() as patch:
        patch.setattr(merge_proof, "_is_proven", no_proof)
        assert rank_order(model_of(merges)) == first
        with pytest.raises(AssertionError, match="proven again"):
            rank_order(model_of(merges, ignore_merges=True))


def test_a_damaged_verdict_is_not_believed(home: Path) -> None:
    model = model_of([("b", "c"), ("a", "b"), ("ab", "c")])
    assert rank_order(model) is None
    (verdict,) = (home / "tokenizers").iterdir()
    verdict.write_bytes(b"merges by r\xff")
    assert rank_order(model) is None


def test_a_home_that_cannot_be_written_does_no_harm(home: Path) -> None:
    home.write_text("a file where the folder should be")
    assert rank_order(model_of([("a", "b")])) is not None
