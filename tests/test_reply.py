"""Replies as text: where a stop text ends them, and what of them may be shown while they come."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from byte_tokenizer import ByteTokenizer
from camelid.engine.params import SamplingParams
from camelid.llm.reply import Reply

TEXT = st.text("abé", max_size=12)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str], min_tokens: int) -> tuple[str, int | None]:
    """The reply's text, and the number of tokens after which a stop text ended it, by its definition."""
    data = text.encode()
    shown = ""  # what was given out before the reply was long enough to end
    for count in range(1, len(data) + 1):
        so_far = data[:count].decode(errors="ignore")
        places = [place for stop in stops if (place := so_far.find(stop, len(shown))) >= 0]
        if count >= min_tokens and places:
            return so_far[: min(places)], count
        if count < min_tokens:
            held = [n for stop in stops for n in range(1, len(stop)) if so_far.endswith(stop[:n])]
            shown = max(shown, so_far[: len(so_far) - max(held, default=0)], key=len)
    return text, None


@given(TEXT, STOPS, st.integers(0, 8))
def test_a_stop_text_ends_a_reply_where_it_begins(text: str, stops: list[str], min_tokens: int) -> None:
    tokenizer = ByteTokenizer()
    reply = Reply(tokenizer.stream(continuing=True), SamplingParams(stop=tuple(stops), min_tokens=min_tokens))
    expected, ended_after = cut(text, stops, min_tokens)
    ids = tokenizer.encode(text)
    for count, token in enumerate(ids, 1):
        is_last = count == len(ids)
        if reply.extend([token], "length" if is_last else None):
            assert count == ended_after
            break
    assert reply.text == (expected if ids else "")
    assert "".join(chunk.text for chunk in reply.chunks) == reply.text
    if ids:
        assert reply.finish_reason == ("length" if ended_after is None else "stop")


@given(TEXT, STOPS)
def test_what_is_shown_is_never_taken_back(text: str, stops: list[str]) -> None:
    tokenizer = ByteTokenizer()
    reply = Reply(tokenizer.stream(continuing=True), SamplingParams(stop=tuple(stops)))
    shown = []
    for token in tokenizer.encode(text):
        is_over = reply.extend([token], None)
        shown.append(reply.text)
        if is_over:
            break
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert not any(stop in reply.text for stop in stops)
