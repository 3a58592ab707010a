"""Byte-level BPE on tiktoken: huge texts, missing bytes, ids that are no ranks."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from camelid.tokenizer import Tokenizer, tiktoken_bpe
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET, BytePairModel, tokenizer_json
from camelid.tokenizer.hf_json import on_library, on_tiktoken
from camelid.tokenizer.split_patterns import GPT2
from camelid.tokenizer.tiktoken_bpe import TiktokenBPE, has_long_run, reference_chunks

CHUNK, RUN = 40, 6


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_bpe, "CHUNK_LENGTH", CHUNK)
    monkeypatch.setattr(tiktoken_bpe, "LONGEST_RUN", RUN)


def plain_chunks(text: str) -> list[str]:
    """Cut at every `CHUNK` characters, then each run of blanks or of others at every `RUN` characters of it."""
    chunks = []
    for start in range(0, len(text), CHUNK):
        piece = ""
        for _, run in groupby(text[start : start + CHUNK], key=str.isspace):
            characters = "".join(run)
            for at in range(0, len(characters), RUN):
                if at:
                    chunks.append(piece)
                    piece = ""
                piece += characters[at : at + RUN]
        chunks.append(piece)
    return chunks


def test_texts_are_cut_where_the_reference_code_cuts_them(small_limits: None) -> None:
    @settings(deadline=None, max_examples=400)
    @given(text=st.lists(st.text("ab", max_size=16) | st.text(" \n", max_size=16)).map("".join))
    @example(text="a" * (CHUNK + 1))
    @example(text="aaaaaaa")
    def check(text: str) -> None:
        assert list(reference_chunks(text)) == plain_chunks(text)

    check()


def test_a_long_run_is_seen_wherever_it_lies() -> None:
    limit = tiktoken_bpe.LONGEST_RUN
    for before in (0, 1, limit // 2 - 1, limit // 2, limit):
        for run in ("x" * (limit + 1), " \n" * (limit // 2) + " "):
            assert has_long_run("ab " * (before // 3) + run + " tail")
    assert not has_long_run("two words " * limit)


def test_huge_texts_do_not_overflow(llama3: Tokenizer) -> None:
    text = " " * 1_000_000 + "x" * 100_000
    ids = llama3.encode(text)
    assert llama3.decode(ids) == text


def incomplete() -> BytePairModel:
    """A vocabulary that lacks the bytes of 'x' and 'é', with merges across the gap."""
    tokens = [character for character in BYTE_ALPHABET if character not in "xÃ"]
    merges = [("a", "b"), ("ab", "c")]
    tokens += ["ab", "abc"]
    return BytePairModel({token: i for i, token in enumerate(tokens)}, merges, (GPT2,))


def both(model: BytePairModel) -> tuple[Tokenizer, Tokenizer]:
    special = SpecialTokens()
    text = tokenizer_json(model, special)
    tokenizer = on_tiktoken(model, special, lambda: text)
    assert isinstance(tokenizer, TiktokenBPE)
    return tokenizer, on_library(text, special, "test")


@settings(deadline=None, max_examples=100)
@given(text=st.text("abcxé 中", max_size=12))
@example(text="axbc")
def test_bytes_that_the_vocabulary_lacks_are_left_out_as_the_library_does(text: str) -> None:
    tokenizer, library = both(incomplete())
    assert tokenizer.encode(text) == library.encode(text)


def test_smollm2_lacks_control_characters(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a\x04b") == smollm2.encode("a") + smollm2.encode("b")
    assert smollm2.decode(smollm2.encode("tab\tnewline\n")) == "tab\tnewline\n"


def test_ids_need_not_follow_ranks() -> None:
    merges = [("a", "b"), ("c", "d"), ("ab", "cd")]
    tokens = ["abcd", "cd", *BYTE_ALPHABET, "ab"]
    tokenizer, library = both(BytePairModel({token: 2 * i for i, token in enumerate(tokens)}, merges, (GPT2,)))
    for text in ("abcd", "ab cd", "xabcdx"):
        assert tokenizer.encode(text) == library.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("abcd") == [0]
