"""SentencePiece vocabularies: the file, the rules about spaces, Code Llama's control pieces, tokenizer.json."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camelid.base.errors import TokenizerError
from camelid.tokenizer import Tokenizer, load_tokenizer
from camelid.tokenizer.spm import INFILL, SentencePieceTokenizer
from camelid.tokenizer.spm_json import sentencepiece_json
from camelid.tokenizer.spm_model import Piece, PieceType, SentencePieceModel, parse, serialize

MODEL = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "llama2" / "tokenizer.model"
anything = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def llama2_model() -> SentencePieceModel:
    return parse(MODEL.read_bytes(), MODEL)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODEL))


def test_the_file_says_what_the_library_says(
    llama2_model: SentencePieceModel, processor: sentencepiece.SentencePieceProcessor
) -> None:
    assert [piece.text for piece in llama2_model.pieces] == [processor.id_to_piece(i) for i in range(32_000)]
    assert [piece.score for piece in llama2_model.pieces] == [processor.get_score(i) for i in range(32_000)]
    assert [i for i, piece in enumerate(llama2_model.pieces) if piece.type == PieceType.CONTROL] == [1, 2]
    assert {i for i, piece in enumerate(llama2_model.pieces) if piece.type == PieceType.BYTE} == set(range(3, 259))
    rest = replace(llama2_model, pieces=())
    assert rest == SentencePieceModel(pieces=())
    assert parse(serialize(llama2_model), "again") == llama2_model


@anything
@given(text=st.text() | st.text(" \n▁aé", max_size=40))
def test_ids_are_the_librarys(llama2: Tokenizer, processor: sentencepiece.SentencePieceProcessor, text: str) -> None:
    ids = llama2.encode(text)
    assert ids == processor.encode(text)
    assert llama2.decode(ids) == processor.decode(ids)


@anything
@given(text=st.text(" \n▁aé b. the", max_size=80))
def test_long_texts_cut_between_words_give_the_same_ids(
    llama2: Tokenizer, processor: sentencepiece.SentencePieceProcessor, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camelid.tokenizer.spm.STRETCH", 3)
    assert llama2.encode(text) == processor.encode(text)


def test_a_piece_with_a_space_inside_is_never_cut(llama2_model: SentencePieceModel) -> None:
    pieces = (*llama2_model.pieces, Piece("of▁the", 0.0, PieceType.USER_DEFINED))
    tokenizer = SentencePieceTokenizer(replace(llama2_model, pieces=pieces), where="test")
    text = "one of the " * 2000
    assert tokenizer.encode(text).count(32_000) == 2000


def test_the_space_before_a_text(llama2: Tokenizer) -> None:
    assert llama2.encode("Hello") == [15043]
    assert llama2.decode([15043]) == "Hello"
    assert llama2.decode([1, 15043], skip_special=True) == "Hello"
    assert llama2.decode([15043, 15043]) == "Hello Hello"
    assert llama2.decode(llama2.encode(" Hello")) == " Hello"
    assert llama2.token_bytes(15043) == b" Hello"


def test_every_stretch_between_control_tokens_gets_a_space(llama2: Tokenizer) -> None:
    assert llama2.encode("<s>Hello</s>Hello", allow_special=True) == [1, 15043, 2, 15043]


def code_llama(llama2_model: SentencePieceModel) -> SentencePieceModel:
    """Llama 2's vocabulary with the 16 pieces that Code Llama has more; the infill ones as ordinary pieces."""
    extra = [Piece(f"<filler{i}>", 0.0, PieceType.CONTROL) for i in range(16)]
    extra[7:11] = [Piece(text, 0.0, PieceType.USER_DEFINED) for text in INFILL]
    return replace(llama2_model, pieces=llama2_model.pieces + tuple(extra))


def test_code_llamas_infill_pieces_are_control_tokens(llama2_model: SentencePieceModel, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(serialize(code_llama(llama2_model)))
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.special.ids[text] for text in INFILL] == [32007, 32008, 32009, 32010]
    assert tokenizer.vocab_size == 32_016
    assert tokenizer.special.control_ids.isdisjoint(tokenizer.encode(" <PRE> x <SUF> y <MID>▁<EOT>"))
    assert tokenizer.encode("▁<PRE>Hello", allow_special=True) == [32007, 15043]


@pytest.mark.parametrize("beyond", ["32000", "-1", "null", '"5"'])
def test_added_tokens_beyond_the_file_are_not_dropped_silently(beyond: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODEL.read_bytes())
    (tmp_path / "added_tokens.json").write_text(f'{{"<|im_start|>": {beyond}, "</s>": 2}}')
    with pytest.raises(TokenizerError, match=r"adds '<\|im_start\|>'"):
        load_tokenizer(tmp_path)


def test_the_begin_token_can_be_declined(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODEL.read_bytes())
    assert load_tokenizer(tmp_path).special.add_bos
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert not load_tokenizer(tmp_path).special.add_bos


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    data = MODEL.read_bytes()
    rng = random.Random(1)
    for size in [1, 2, 3, *(rng.randrange(len(data)) for _ in range(5))]:
        (tmp_path / "cut.model").write_bytes(data[:size])
        with pytest.raises(TokenizerError) as caught:
            load_tokenizer(tmp_path / "cut.model")
        assert "cut.model" in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    try:
        model = parse(b"\x0a" + data, "test")
    except TokenizerError:
        return
    assert model.pieces


def test_a_vocabulary_that_the_library_refuses() -> None:
    twice = SentencePieceModel(pieces=(Piece("<unk>", 0, PieceType.UNKNOWN), Piece("a", 0), Piece("a", 0)))
    with pytest.raises(TokenizerError, match="sentencepiece refuses"):
        SentencePieceTokenizer(replace(twice, byte_fallback=False), where="test")


@pytest.fixture(scope="module")
def as_json(llama2: SentencePieceTokenizer, llama2_model: SentencePieceModel) -> tokenizers.Tokenizer:
    text = sentencepiece_json(llama2_model, llama2.special)
    assert text is not None
    library = tokenizers.Tokenizer.from_str(text)
    library.encode_special_tokens = True
    return library


@anything
@given(text=st.text() | st.text(" \n▁aé1", max_size=60) | st.integers(0, 70).map(lambda n: "a" + " " * n + "b"))
def test_tokenizer_json_gives_the_same_ids(llama2: Tokenizer, as_json: tokenizers.Tokenizer, text: str) -> None:
    assert as_json.encode(text, add_special_tokens=False).ids == llama2.encode(text)


def test_tokenizer_json_is_written_only_where_it_is_exact(
    llama2: Tokenizer, llama2_model: SentencePieceModel, tmp_path: Path
) -> None:
    words = llama2_model.pieces[300:302]
    tied = tuple(replace(piece, score=-5.0) if piece in words else piece for piece in llama2_model.pieces)
    assert sentencepiece_json(replace(llama2_model, pieces=tied), llama2.special) is None
    assert sentencepiece_json(replace(llama2_model, model_type=1), llama2.special) is None
    assert sentencepiece_json(replace(llama2_model, remove_extra_whitespaces=True), llama2.special) is None

    llama2.save(tmp_path / "llama2")
    assert (tmp_path / "llama2" / "tokenizer.model").read_bytes() == MODEL.read_bytes()
    again = load_tokenizer(tmp_path / "llama2")
    assert again.special == llama2.special
    text = "[INST] Hi  there [/INST] café 🦙"
    assert again.encode(text) == llama2.encode(text)
    assert again.decode(llama2.encode(text)) == text
