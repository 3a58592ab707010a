from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelid.data.document import Document
from camelid.data.normalise import Normalise, normalise
from camelid.data.steps import Dropped

# Mostly characters that normalisation touches; any others now and then.
AWKWARD = st.text(
    st.sampled_from("a é\u0301\u00a0\n\r\t\x00\x0b\x85\u2028\ufeff\ufb01\u1100\u1161\u3000") | st.characters()
)


@given(AWKWARD, st.sampled_from(["NFC", "NFKC", "none"]))
def test_twice_is_once(text: str, form: str) -> None:
    once = normalise(text, form)
    assert normalise(once, form) == once


@given(AWKWARD)
def test_the_result_is_composed_and_has_no_control_characters(text: str) -> None:
    result = normalise(text)
    assert unicodedata.is_normalized("NFC", result)
    assert not [c for c in result if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("e\u0301", "é"),
        ("e\x00\u0301", "é"),
        ("\ufeffstart  \nnext\t\n", "start\nnext"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("  indented stays\n    code", "indented stays\n    code"),
        ("می‌خواهم 👩‍🚀", "می‌خواهم 👩‍🚀"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_ligatures_stay_unless_asked_for() -> None:
    assert normalise("ﬁne") == "ﬁne"
    assert normalise("ﬁne", "NFKC") == "fine"


def test_a_document_of_nothing_is_dropped() -> None:
    judge = Normalise().build()
    dropped = judge(Document("\x00 \r\n", "id", "file"))
    assert isinstance(dropped, Dropped)
    assert dropped.rule == "empty"
    assert judge(Document("text", "id", "file")) == Document("text", "id", "file")
