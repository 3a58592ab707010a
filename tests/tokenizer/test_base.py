"""What holds for every tokenizer, whatever its vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camelid.base.errors import TokenizerError
from camelid.tokenizer import Tokenizer
from camelid.tokenizer.base import scalar_text

anything = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

SPELLINGS = [
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<0x0A>",
    "▁",
]
texts = st.lists(st.text() | st.sampled_from(SPELLINGS) | st.text(" \n\t'sa1é中", max_size=20)).map("".join)


@anything
@given(text=texts)
def test_any_text_comes_back(byte_complete: Tokenizer, text: str) -> None:
    assert byte_complete.decode(byte_complete.encode(text)) == text


@anything
@given(text=texts)
def test_any_text_but_its_own_space_comes_back_from_sentencepiece(llama2: Tokenizer, text: str) -> None:
    assert llama2.decode(llama2.encode(text)) == text.replace("▁", " ")


@anything
@given(data=st.data())
def test_a_stream_gives_what_decode_gives(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    one = (
        st.integers(0, any_tokenizer.vocab_size - 1)
        | st.sampled_from(any_tokenizer.encode("é中🦙 a ▁"))
        | control(any_tokenizer)
    )
    ids = data.draw(st.lists(one, max_size=30))
    skip = data.draw(st.booleans())
    decoder = any_tokenizer.stream(skip_special=skip)
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == any_tokenizer.decode(ids, skip_special=skip)


def control(tokenizer: Tokenizer) -> st.SearchStrategy[int]:
    return st.sampled_from(sorted(tokenizer.special.control_ids))


@anything
@given(text=st.text(min_size=1))
def test_a_stream_never_shows_half_a_character(any_tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "")
    ids = any_tokenizer.encode(text)
    whole = any_tokenizer.decode(ids)
    decoder = any_tokenizer.stream()
    shown = "".join(map(decoder.push, ids))
    assert whole.startswith(shown)
    assert "\ufffd" not in shown or "\ufffd" in whole


@anything
@given(data=st.data())
def test_text_never_becomes_a_control_token(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    spelling = st.sampled_from(sorted(any_tokenizer.special.ids)) | st.text(max_size=5)
    text = data.draw(st.lists(spelling, max_size=8).map("".join))
    assert any_tokenizer.special.control_ids.isdisjoint(any_tokenizer.encode(text))


def test_control_tokens_are_read_when_asked_for(any_tokenizer: Tokenizer) -> None:
    name, token_id = sorted(any_tokenizer.special.ids.items())[0]
    ids = any_tokenizer.encode(f"{name}Hi{name}", allow_special=True)
    assert ids[0] == ids[-1] == token_id
    assert any_tokenizer.decode(ids) == f"{name}Hi{name}"
    assert any_tokenizer.decode(ids, skip_special=True) == "Hi"


def test_begin_and_end_are_put_only_when_asked_for(llama3: Tokenizer) -> None:
    ids = llama3.encode("Hello world")
    assert llama3.encode("Hello world", bos=True, eos=True) == [128_000, *ids, 128_001]


def test_asking_for_a_begin_token_that_does_not_exist(tmp_path: object) -> None:
    from camelid.tokenizer.train import train_tokenizer

    tokenizer = train_tokenizer(["some text"], 300, special_tokens=["<|end_of_text|>"])
    with pytest.raises(TokenizerError, match="no begin-of-sequence token"):
        tokenizer.encode("x", bos=True)


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_id_out_of_range_is_an_error(any_tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"no token {token_id}"):
        any_tokenizer.decode([token_id])


def test_bytes_that_are_no_text_become_replacement_characters(gpt2: Tokenizer) -> None:
    emoji = gpt2.encode("🦙")
    assert gpt2.decode(emoji[:-1]) == "\ufffd"
    decoder = gpt2.stream()
    assert [decoder.push(token_id) for token_id in emoji[:-1]] == [""] * (len(emoji) - 1)
    assert decoder.flush() == "\ufffd"


def test_lone_surrogates_become_replacement_characters(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.encode("a\ud800b") == any_tokenizer.encode("a\ufffdb")
    assert scalar_text("\ud83e\udd99") == "🦙"


def test_a_continued_stream_keeps_the_first_space(llama2: Tokenizer, gpt2: Tokenizer) -> None:
    ids = llama2.encode("time")
    assert llama2.stream().push_all(ids) == "time"
    assert llama2.stream(continuing=True).push_all(ids) == " time"
    assert gpt2.stream(continuing=True).push_all(gpt2.encode("time")) == "time"


def test_a_batch_is_each_text_alone(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.encode_batch(["a b", "", "c"]) == [any_tokenizer.encode(text) for text in ("a b", "", "c")]


def test_the_bytes_of_tokens_joined_are_the_text(byte_complete: Tokenizer) -> None:
    text = "né 🦙\n x"
    assert b"".join(map(byte_complete.token_bytes, byte_complete.encode(text))) == text.encode()
