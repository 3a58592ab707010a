"""tokenizer.json: the same ids as the `tokenizers` library, on whichever engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from camelid.base.errors import TokenizerError
from camelid.tokenizer import Tokenizer, load_tokenizer
from camelid.tokenizer.library import LibraryTokenizer
from camelid.tokenizer.split_patterns import GPT2_DIGITS, LLAMA3, LLAMA4, QWEN2, read_cuts
from camelid.tokenizer.tiktoken_bpe import TiktokenBPE
from camelid.tokenizer.train import train_tokenizer

CORPUS = ["The llama's 12 camels weren't 2023 pounds; they'll say: «été», 中文 and 🦙!\n\n  Ça va?\r\n" * 3] * 4
anything = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
awkward = st.lists(
    st.text()
    | st.text(" \n\r\t\u00a0\u3000", max_size=6)
    | st.sampled_from(["'s", "'LL", "'ſ", "12345", "<|eot_id|>", "²", "ǅ"])
).map("".join)


def written(folder: Path, backend: tokenizers.Tokenizer, **config: Any) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    """A trained byte-level BPE that cuts text in some way."""
    trained = train_tokenizer(CORPUS, 420, special_tokens=["<|endoftext|>", "<|eot_id|>"])
    assert isinstance(trained, TiktokenBPE)
    backend = tokenizers.Tokenizer.from_str(trained._tokenizer_json())
    backend.pre_tokenizer = pre_tokenizer
    return backend


def split(pattern: str, behavior: str = "isolated", *, invert: bool = False) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior, invert=invert)
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits, then gpt2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt2 and digits in one": split(GPT2_DIGITS),
    "llama3": split(LLAMA3),
    "llama4": split(LLAMA4, "removed", invert=True),
    "qwen2": split(QWEN2),
}


@pytest.fixture(scope="module", params=CUTS)
def on_both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    backend = byte_level(CUTS[request.param])
    tokenizer = load_tokenizer(written(tmp_path_factory.mktemp("cut"), backend))
    backend.encode_special_tokens = True
    return tokenizer, backend


def test_known_cuts_run_on_tiktoken(on_both: Any) -> None:
    assert isinstance(on_both[0], TiktokenBPE)


@anything
@given(text=awkward)
def test_ids_are_the_librarys(on_both: Any, text: str) -> None:
    tokenizer, backend = on_both
    assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


def test_blanks_past_any_stack_and_huge_words_are_encoded(on_both: Any) -> None:
    tokenizer, backend = on_both
    for text in (" " * 1_000_000 + "x", "a " + "b" * 60_000 + "\n" * 60_000):
        assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


UNKNOWN_TO_TIKTOKEN = {
    "another expression": lambda backend: setattr(backend, "pre_tokenizer", split(r"\w+|\W+")),
    "a space before every text": lambda backend: setattr(
        backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "a normaliser": lambda backend: setattr(backend, "normalizer", normalizers.NFC()),
    "a token that swallows blanks": lambda backend: backend.add_special_tokens(
        [tokenizers.AddedToken("<mask>", lstrip=True)]
    ),
}


@pytest.mark.parametrize("change", UNKNOWN_TO_TIKTOKEN)
def test_what_is_not_proven_runs_on_the_library(change: str, tmp_path: Path) -> None:
    backend = byte_level(CUTS["gpt2"])
    UNKNOWN_TO_TIKTOKEN[change](backend)
    tokenizer = load_tokenizer(written(tmp_path, backend))
    assert isinstance(tokenizer, LibraryTokenizer)
    text = "e\u0301té's <mask> 12  x"
    assert tokenizer.encode(text, allow_special=True) == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(" été 🦙")).strip() == "été 🦙"


def unigram() -> tokenizers.Tokenizer:
    pieces = [
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁he", -3.0),
        ("llo", -3.5),
        ("h", -5.0),
        ("e", -5.0),
        ("l", -5.0),
        ("o", -5.0),
    ]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def word_piece() -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "un", "##known", "do", "n't", "."])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return backend


def test_a_unigram_vocabulary(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, unigram()))
    assert tokenizer.encode("hello hello") == unigram().encode("hello hello").ids == [2, 3, 2, 3]
    assert tokenizer.decode([2, 3, 2, 3]) == "hello hello"
    assert tokenizer.stream(continuing=True).push_all([2, 3]) == " hello"


def test_a_word_piece_vocabulary_streams_at_the_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, word_piece(), bos_token="[CLS]"))
    assert tokenizer.special.bos == 1
    assert tokenizer.special.add_bos
    ids = tokenizer.encode("unknown do n't .")
    assert ids == word_piece().encode("unknown do n't .", add_special_tokens=False).ids
    decoder = tokenizer.stream()
    assert [decoder.push(token_id) for token_id in ids] == [""] * len(ids)
    assert decoder.flush() == tokenizer.decode(ids) == word_piece().decode(ids)


def test_the_files_beside_it_say_what_the_control_tokens_are_for(tmp_path: Path) -> None:
    backend = byte_level(CUTS["llama3"])
    written(tmp_path, backend, bos_token={"content": "<|endoftext|>"}, add_bos_token=True)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [321, 320], "pad_token_id": 320}')
    special = load_tokenizer(tmp_path).special
    assert (special.bos, special.eos, special.pad, special.add_bos) == (320, 321, 321, True)


def test_files_of_two_models_in_one_folder(tmp_path: Path) -> None:
    written(tmp_path, byte_level(CUTS["llama3"]), eos_token="</s>")
    with pytest.raises(TokenizerError, match=r"eos_token is '</s>', which the vocabulary lacks"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no tokenizer.json"),
        ('{"hello": 0}', "no tokenizer.json"),
        ('{"model": {"type": "BPE"}}', "broken"),
        ('{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}', "broken"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "cannot read"),
        ('{"model": {"type": "Telepathy", "vocab": {"a": 0}}}', "cannot read"),
        ("[" * 60_000, "no JSON"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "-1 is no token id"),
        ('{"model": {"type": "BPE", "vocab": {"a": 4294967296}, "merges": []}}', "4294967296 is no token id"),
        ('{"model": {"vocab": {}}, "added_tokens": [{"id": Infinity, "content": "a"}]}', "inf is no token id"),
    ],
)
def test_a_broken_tokenizer_json(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_an_id_that_two_tokens_share_is_left_to_the_library(tmp_path: Path) -> None:
    folder = written(tmp_path, byte_level(CUTS["gpt2"]))
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["model"]["vocab"]["!"] = definition["model"]["vocab"]['"']
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert isinstance(load_tokenizer(folder), LibraryTokenizer)


def test_an_added_token_that_is_half_a_character_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, byte_level(CUTS["gpt2"]))
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"][0]["content"] = "\ud800"
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(TokenizerError, match="broken"):
        load_tokenizer(folder)


def test_added_tokens_are_found_leftmost_and_longest(tmp_path: Path) -> None:
    backend = byte_level(CUTS["llama3"])
    backend.add_tokens(["<tool>", "<tool>s"])
    backend.add_special_tokens(["<|eot_id|>s"])
    tokenizer = load_tokenizer(written(tmp_path, backend))
    assert isinstance(tokenizer, TiktokenBPE)
    text = "<|eot_id|>s <tool>s<tool><|eot_id|>"
    assert tokenizer.encode(text, allow_special=True) == backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = True
    assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "Sequence", "pretokenizers": []},
        {"type": "Metaspace"},
        {"type": "Split", "pattern": {"String": "x"}},
    ],
)
def test_other_cuts_are_not_taken_for_known_ones(pre_tokenizer: Any) -> None:
    assert read_cuts(pre_tokenizer) is None


def test_saving_keeps_the_file(tmp_path: Path) -> None:
    for backend in (byte_level(CUTS["gpt2"]), unigram()):
        original = load_tokenizer(written(tmp_path, backend))
        before = (tmp_path / "tokenizer.json").read_bytes()
        original.save(tmp_path / "copy")
        assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == before
        copy: Tokenizer = load_tokenizer(tmp_path / "copy")
        assert copy.special == original.special
