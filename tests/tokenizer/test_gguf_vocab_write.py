"""Vocabularies into GGUF metadata and back: every text keeps its ids."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import TokenizerError
from camelid.base.gguf_header import read_gguf_header
from camelid.checkpoint.gguf_container import header_bytes
from camelid.tokenizer import load_tokenizer
from camelid.tokenizer.base import SpecialTokens
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET, BytePairModel, tokenizer_json
from camelid.tokenizer.gguf_pre import GGUF_PRE
from camelid.tokenizer.gguf_vocab import from_gguf_metadata
from camelid.tokenizer.gguf_vocab_write import PRE_NAMES, gguf_vocabulary
from camelid.tokenizer.split_patterns import GPT2, LLAMA3

if TYPE_CHECKING:
    from camelid.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tokenizers"


def back(tokenizer: Tokenizer, folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer after a trip through a file's bytes."""
    keys = gguf_vocabulary(tokenizer, vocab_size or tokenizer.vocab_size)
    special = tokenizer.special
    ids = {"bos": special.bos, "eos": special.eos, "padding": special.pad, "unknown": special.unk}
    keys |= {f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items() if i is not None}
    path = folder / "vocabulary.gguf"
    path.write_bytes(header_bytes(keys, []))
    return from_gguf_metadata(read_gguf_header(path).metadata)


def vector_file(name: str, folder: Path) -> Tokenizer:
    path = folder / f"{name}.gguf"
    path.write_bytes(gzip.decompress((FIXTURES / "vectors" / f"{name}.gguf.gz").read_bytes()))
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Tokenizer]]:
    """Name → a tokenizer, and the same after the trip."""
    folder = tmp_path_factory.mktemp("vocabularies")
    found = {name: vector_file(name, folder) for name in ("gpt-2", "llama-spm")}
    found["llama2"] = load_tokenizer(FIXTURES / "llama2" / "tokenizer.model")
    found["trained"] = load_tokenizer(trained(folder))
    return {name: (one, back(one, folder, one.vocab_size + 3)) for name, one in found.items()}


def trained(folder: Path) -> Path:
    """A small vocabulary as a tokenizer.json, with control tokens and a word that was added."""
    chance_merges = [("a", "b"), ("ab", "c"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("1", "2"), ("Ã", "©")]
    vocab = {token: i for i, token in enumerate([*BYTE_ALPHABET, *("".join(pair) for pair in chance_merges)])}
    definition = tokenizer_json(BytePairModel(vocab, chance_merges, (LLAMA3,)), SpecialTokens())
    library = tokenizers.Tokenizer.from_str(definition)
    library.add_special_tokens(["<|begin|>", "<|end|>"])
    library.add_tokens(["llama"])
    path = folder / "tokenizer.json"
    library.save(str(path))
    return path


TEXTS = st.text() | st.lists(
    st.sampled_from(["abc", " the", "12345", "é", "🦙", "\n\n", "  ", "▁", "llama", "<|end|>", "</s>", "\x00", "'LL"])
).map("".join)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "llama2", "trained"])
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_every_text_keeps_its_ids(vocabularies: dict[str, tuple[Tokenizer, Tokenizer]], name: str, text: str) -> None:
    tokenizer, again = vocabularies[name]
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
    ids = tokenizer.encode(text)
    assert again.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "llama2", "trained"])
def test_control_tokens_keep_their_roles(vocabularies: dict[str, tuple[Tokenizer, Tokenizer]], name: str) -> None:
    tokenizer, again = vocabularies[name]
    old, new = tokenizer.special, again.special
    assert (new.bos, new.eos, new.pad, new.unk, new.add_bos) == (old.bos, old.eos, old.pad, old.unk, old.add_bos)
    assert new.ids.items() >= old.ids.items()


def test_ids_that_only_the_model_has_become_unused_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(trained(tmp_path))
    keys = gguf_vocabulary(tokenizer, tokenizer.vocab_size + 2)
    assert keys["tokenizer.ggml.tokens"][-2:] == [f"[PAD{tokenizer.vocab_size + i}]" for i in (0, 1)]
    assert keys["tokenizer.ggml.token_type"].tolist()[-6:] == [1, 3, 3, 4, 5, 5]


def test_a_name_stands_for_the_cut_that_readers_make() -> None:
    for (cuts, ignore_merges), name in PRE_NAMES.items():
        assert (GGUF_PRE[name].cuts, GGUF_PRE[name].ignore_merges) == (cuts, ignore_merges)
    assert {"gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "llama4", "gpt-4o"} <= set(PRE_NAMES.values())


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(trained(tmp_path))
    with pytest.raises(TokenizerError, match="the model only 100"):
        gguf_vocabulary(tokenizer, 100)


def byte_level(pattern: str, *, ignore_merges: bool, unreached: bool = False) -> str:
    tokens = [*BYTE_ALPHABET, "ab", *(["xyz"] if unreached else [])]
    model = BytePairModel({token: i for i, token in enumerate(tokens)}, [("a", "b")], (pattern,), ignore_merges)
    return tokenizer_json(model, SpecialTokens())


def test_taking_whole_cuts_at_once_makes_no_difference_where_merges_reach_every_token(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level(GPT2, ignore_merges=True))
    assert gguf_vocabulary(load_tokenizer(tmp_path), 257)["tokenizer.ggml.pre"] == "gpt-2"


REFUSED: dict[str, str] = {
    "another cut": byte_level(r"\p{L}+|\P{L}", ignore_merges=False),
    "whole cuts that merges do not reach": byte_level(GPT2, ignore_merges=True, unreached=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_name_stands_for_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(REFUSED[name])
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="GGUF"):
        gguf_vocabulary(tokenizer, tokenizer.vocab_size)


def test_a_unigram_vocabulary_is_refused() -> None:
    from camelid.tokenizer.spm import SentencePieceTokenizer
    from camelid.tokenizer.spm_model import UNIGRAM, Piece, PieceType, SentencePieceModel

    pieces: list[Any] = [Piece("<unk>", 0.0, PieceType.UNKNOWN), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)] + [Piece("▁a", -1.0)]
    tokenizer = SentencePieceTokenizer(SentencePieceModel(tuple(pieces), model_type=UNIGRAM), where="test")
    with pytest.raises(TokenizerError, match="unigram"):
        gguf_vocabulary(tokenizer, tokenizer.vocab_size)
