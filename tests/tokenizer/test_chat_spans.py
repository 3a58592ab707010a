"""Spans to ids and masks, and the breaking up of what spells a control token."""

from __future__ import annotations

import chat_vocabularies as vocabularies
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat_spans import (
    ControlTokens,
    Markers,
    Span,
    Stretch,
    encode_spans,
    loss_mask,
    parse_marked,
    spans_text,
    walk_strings,
)

BROKEN = "\U000e0100"
MARKERS = Markers(BROKEN, "\U000e0101", "\U000e0102")
CONTROL = ControlTokens({"<|a|>": 1, "<|ab|>": 2, "<|a|><|b|>": 3, "aa": 4})
pieces = st.lists(st.sampled_from(["<", "|", "a", "A", "b", ">", " ", "é"]), max_size=12).map("".join)


def test_longest_spelling_wins():
    assert [span.token for span in CONTROL.split("x<|ab|><|a|><|b|><|a|>")] == [None, 2, 3, 1]


@given(st.lists(pieces, max_size=4))
def test_broken_texts_hold_no_control_token_however_they_meet(texts):
    spans = CONTROL.split("".join(CONTROL.break_up(text, BROKEN) for text in texts))
    spelt_across = [span for span in spans if span.token is not None and span.text != "aa"]
    assert spelt_across == []


@given(pieces)
def test_breaking_up_can_be_undone(text):
    spans = parse_marked(CONTROL.break_up(text, BROKEN), MARKERS, CONTROL)
    assert spans_text(spans) == text
    assert all(span.token is None for span in spans)


@given(pieces)
def test_breaking_up_in_any_case(text):
    lowered = CONTROL.break_up(text, BROKEN).lower()
    assert all(span.token is None for span in CONTROL.split(lowered))


@pytest.mark.parametrize("text", ["Hello", "a < b", "<b>bold</b>", "", " ", "x|>", "if a < b: pass  "])
def test_harmless_text_is_left_alone(text):
    assert ControlTokens({"<|a|>": 1, "</s>": 2}).break_up(text, BROKEN) == text


def test_vocabulary_without_control_tokens():
    control = ControlTokens({})
    assert control.break_up("<|a|>", BROKEN) == "<|a|>"
    assert control.split("<|a|>") == [Span("<|a|>")]


def test_markers_are_absent_from_the_texts():
    taken = [chr(code) for code in range(0xE0100, 0xE01EC)]
    markers = Markers.absent_from(["Hello", "".join(taken)])
    assert len(set(markers)) == 3
    assert not set(markers) & set(taken)


def test_text_that_holds_every_marker_is_refused():
    with pytest.raises(ChatFormatError, match="variation selector"):
        Markers.absent_from(["".join(chr(code) for code in range(0xE0100, 0xE01EF))])


def test_every_string_is_found():
    assert sorted(walk_strings({"a": ["b", {"c": "d"}, 1, None], "e": True})) == ["a", "b", "c", "d", "e"]


def test_neighbouring_text_is_encoded_together():
    tokenizer = vocabularies.llama3_tokenizer()
    [stretch] = encode_spans(tokenizer, [Span("Hel"), Span("lo", learned=True)])
    assert stretch.ids == tokenizer.encode("Hello")


def test_token_that_straddles_is_not_learned():
    tokenizer = vocabularies.llama3_tokenizer()
    newlines = tokenizer.encode("\n\n")
    assert len(newlines) == 1
    stretches = encode_spans(tokenizer, [Span("a\n"), Span("\nb", learned=True), Span("c")])
    assert loss_mask(tokenizer, stretches) == [False, False, True, False]
    stretches = encode_spans(tokenizer, [Span("a\n"), Span("\n\nb", learned=True)])
    assert loss_mask(tokenizer, stretches)[-1]


def test_mask_needs_tokens_that_spell_the_text():
    tokenizer = vocabularies.llama3_tokenizer()
    lowered = Stretch(tokenizer.encode("hello"), [Span("HEL"), Span("LO", learned=True)])
    with pytest.raises(ChatFormatError, match="normalize"):
        loss_mask(tokenizer, [lowered])
