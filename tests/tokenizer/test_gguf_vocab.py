"""Vocabularies in GGUF metadata."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from camelid.base.errors import FormatError, TokenizerError
from camelid.tokenizer import Tokenizer, load_tokenizer
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET
from camelid.tokenizer.gguf_vocab import from_gguf_metadata
from camelid.tokenizer.library import LibraryTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def keys(**values: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def byte_pairs(**values: Any) -> dict[str, Any]:
    """A byte-level vocabulary: control tokens first, as SmolLM2 has them, then bytes and one merge."""
    tokens = ["<|end|>", "<|start|>", *BYTE_ALPHABET, "ab", "<tool>", "[PAD]"]
    types = [CONTROL, CONTROL, *[NORMAL] * 257, USER_DEFINED, UNUSED]
    default = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": types, "merges": ["a b"]}
    return keys(**{**default, "bos_token_id": 1, "eos_token_id": 0, **values})


def sentencepiece(**values: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "<tool>"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, NORMAL, NORMAL, NORMAL, NORMAL, USER_DEFINED]
    scores = [0.0] * 259 + [-4.0, -3.0, -2.0, -1.0, 0.0]
    return keys(**{"model": "llama", "tokens": tokens, "token_type": types, "scores": scores, **values})


def test_kinds_of_tokens_in_a_byte_level_vocabulary() -> None:
    tokenizer = from_gguf_metadata(byte_pairs())
    ids = tokenizer.encode("<tool>ab<|end|>[PAD]")
    assert ids[:2] == [259, 258]
    assert not {0, 1, 260} & set(ids)
    assert tokenizer.decode(ids) == "<tool>ab<|end|>[PAD]"
    assert tokenizer.encode("ab<|end|>", allow_special=True) == [258, 0]
    assert (tokenizer.special.bos, tokenizer.special.eos, tokenizer.special.add_bos) == (1, 0, False)
    assert tokenizer.vocab_size == 261


def test_a_saved_byte_level_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    tokenizer = from_gguf_metadata(byte_pairs(add_bos_token=True))
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.special == tokenizer.special
    for text in ("ab <tool> <|end|> 12", "<|start|>ab<|end|>"):
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)


def test_merges_that_rank_would_not_follow_run_on_the_library() -> None:
    vocabulary = byte_pairs(tokens=[*BYTE_ALPHABET, "bc", "ab", "abc"], token_type=[NORMAL] * 259, bos_token_id=None)
    tokenizer = from_gguf_metadata(vocabulary | keys(merges=["b c", "a b", "ab c"]))
    assert isinstance(tokenizer, LibraryTokenizer)
    assert tokenizer.encode("abc") == [BYTE_ALPHABET.index("a"), 256]


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("smollm", False), ("gpt-2", False)])
def test_whether_prompts_begin_with_the_begin_token(pre: str, adds: bool) -> None:
    assert from_gguf_metadata(byte_pairs(pre=pre)).special.add_bos is adds
    assert from_gguf_metadata(byte_pairs(pre=pre, add_bos_token=not adds)).special.add_bos is not adds


def test_a_sentencepiece_vocabulary() -> None:
    tokenizer = from_gguf_metadata(sentencepiece())
    assert tokenizer.encode("a<tool>ab</s>")[:4] == [262, 263, 260, 261]
    assert tokenizer.decode(tokenizer.encode("é a")) == "é a"
    assert tokenizer.special.add_bos
    assert (tokenizer.special.bos, tokenizer.special.eos, tokenizer.special.unk) == (1, 2, 0)


def test_a_sentencepiece_vocabulary_without_the_space_before_a_text() -> None:
    tokenizer = from_gguf_metadata(sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode("a a") == [260, 262]
    assert tokenizer.decode([262, 262]) == " a a"
    assert not tokenizer.special.add_bos


def test_an_unknown_piece_written_as_a_control_piece() -> None:
    types = sentencepiece()["tokenizer.ggml.token_type"]
    tokenizer = from_gguf_metadata(sentencepiece(token_type=[CONTROL, *types[1:]]))
    assert tokenizer.encode("a") == [262]


NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
BROKEN = [
    (keys(), "no tokenizer"),
    (keys(model="bert"), "'bert' is not supported"),
    (byte_pairs(pre="qwen3-next"), "pre-tokenizer 'qwen3-next' is not known"),
    (byte_pairs(pre=None), "does not name its pre-tokenizer"),
    (byte_pairs(tokens=None), "tokens is no array"),
    (byte_pairs(tokens=[]), "tokens is empty"),
    (byte_pairs(tokens=[1, 2]), "tokens holds not only texts"),
    (byte_pairs(model=[1, 2]), "model is no text"),
    (byte_pairs(pre=["gpt-2"]), "pre is no text"),
    (byte_pairs(add_bos_token=np.array([1, 2])), "add_bos_token is neither true nor false"),
    (byte_pairs(eos_token_id=np.array([1, 2])), r"eos_token_id is array\(\[1, 2\]\), outside"),
    (byte_pairs(token_type=[[NORMAL]] * 261), "token_type holds not only whole numbers"),
    (byte_pairs(tokens=[*BYTE_ALPHABET, "ab"], token_type=[NORMAL] * 257, merges=["ab x"], **NO_ENDS), "cannot read"),
    (sentencepiece(scores=[1e300] * 264), "no 32-bit number"),
    (sentencepiece(scores=[float("nan")] * 264), "no 32-bit number"),
    (sentencepiece(scores=["1"] * 264), "scores holds not only numbers"),
    (sentencepiece(add_space_prefix="yes"), "add_space_prefix is neither true nor false"),
    (byte_pairs(tokens=["a", "b", "a"], token_type=[NORMAL] * 3), "'a' comes twice"),
    (byte_pairs(token_type=[NORMAL]), "does not fit the tokens"),
    (byte_pairs(merges=None), "merges is no array"),
    (byte_pairs(merges=["a b", "ab"]), "'ab' is no pair"),
    (byte_pairs(bos_token_id=261), "outside of the vocabulary of 261"),
    (sentencepiece(scores=[0.0]), "1 scores do not fit 264 tokens"),
]


@pytest.mark.parametrize(("metadata", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_metadata_that_cannot_be_right(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        from_gguf_metadata(metadata, where="model.gguf")
    assert "model.gguf" in str(caught.value)


def test_a_large_vocabulary_with_a_token_twice_is_refused_at_once() -> None:
    tokens = [*map(str, range(150_000)), "149999"]
    start = time.monotonic()
    with pytest.raises(TokenizerError, match="'149999' comes twice"):
        from_gguf_metadata(byte_pairs(tokens=tokens))
    assert time.monotonic() - start < 10


def test_a_pre_tokenizer_that_is_nearly_known() -> None:
    with pytest.raises(TokenizerError, match="'llama-bpe'"):
        from_gguf_metadata(byte_pairs(pre="lama-bpe"))


def test_a_file_read_by_the_gguf_package_gives_the_same_ids(gguf_folder: Path, gpt2: Tokenizer) -> None:
    reader = gguf.GGUFReader(gguf_folder / "gpt-2.gguf")
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    text = "Hello, it's 2023 🦙"
    assert from_gguf_metadata(metadata).encode(text) == gpt2.encode(text)


def test_a_truncated_file(gguf_folder: Path, tmp_path: Path) -> None:
    data = (gguf_folder / "gpt-2.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:100_000])
    with pytest.raises(FormatError, match=r"cut\.gguf"):
        load_tokenizer(tmp_path / "cut.gguf")


def test_smollm2(smollm2: Tokenizer) -> None:
    assert smollm2.encode("Hello, we can use") == [19556, 28, 392, 416, 722]
    assert smollm2.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert smollm2.special.ids["<|im_end|>"] == smollm2.special.eos == 2
    assert not smollm2.special.add_bos
