"""Rendered conversations as spans, and spans as token ids.

A renderer gives spans: control tokens, which are ids from the start, and stretches of text, which never become
control tokens whatever they spell. Text between two control tokens is encoded as one piece, as transformers encodes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from camelid.base.errors import ChatFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from camelid.tokenizer.base import Tokenizer

# Variation selectors of the supplementary plane: assigned and printable, so that Python's repr, which templates use to
# print a dict, leaves them alone (it escapes noncharacters); no letter, digit, space or case pair; rarely in text.
_MARKERS = [chr(code) for code in range(0xE0100, 0xE01F0)]


@dataclass(frozen=True)
class Span:
    """A part of a rendered conversation.

    Args:
        text: what it spells.
        token: the control token that it is; None for ordinary text.
        learned: the assistant itself produces it, so the loss is taken on it.
    """

    text: str
    token: int | None = None
    learned: bool = False


class Stretch(NamedTuple):
    """Ids that were encoded together, and the spans they stand for."""

    ids: list[int]
    spans: list[Span]


def encode_spans(tokenizer: Tokenizer, spans: Iterable[Span]) -> list[Stretch]:
    """Ids of the spans, neighbouring text encoded together."""
    stretches = []
    for token, group in groupby(spans, key=lambda span: span.token):
        parts = list(group)
        if token is not None:
            stretches += [Stretch([token], [part]) for part in parts]
        elif text := "".join(part.text for part in parts):
            stretches.append(Stretch(tokenizer.encode(text), parts))
    return stretches


def loss_mask(tokenizer: Tokenizer, stretches: Iterable[Stretch]) -> list[bool]:
    """For each id, whether all of it is learned.

    A token that also covers text the assistant is given (a newline of the header merged with one that its reply starts
    with) is not: after the generation prompt, the model could not have produced it.

    Raises:
        ChatFormatError: the tokenizer's tokens do not spell the text, so they cannot be laid over the spans.
    """
    mask: list[bool] = []
    for ids, spans in stretches:
        if len({span.learned for span in spans}) == 1:
            mask += [spans[0].learned] * len(ids)
        else:
            mask += _mask_stretch(tokenizer, ids, spans)
    return mask


def _mask_stretch(tokenizer: Tokenizer, ids: list[int], spans: list[Span]) -> list[bool]:
    pieces = [tokenizer.token_bytes(token_id) for token_id in ids]
    texts = [span.text.encode() for span in spans]
    extra = sum(map(len, pieces)) - sum(map(len, texts))
    # SentencePiece puts a space of its own before a text.
    if b"".join(pieces) != b" " * extra + b"".join(texts) or extra not in (0, 1):
        raise ChatFormatError(
            "the loss mask cannot be laid over the tokens: they do not spell the text they were made from",
            hint="train with a tokenizer that does not normalize text",
        )
    learned = bytearray(extra)  # one flag per byte
    for span, text in zip(spans, texts, strict=True):
        learned += bytes([span.learned]) * len(text)
    mask, position = [], 0
    for piece in pieces:
        mask.append(bool(piece) and all(learned[position : position + len(piece)]))
        position += len(piece)
    return mask


class ControlTokens:
    """The control tokens of a vocabulary as they occur inside text, longest spelling first.

    A control token of a single character cannot be told from text here, so templates cannot write it.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {spelling: token_id for spelling, token_id in ids.items() if len(spelling) > 1}
        pattern = _trie_pattern(self.ids) or "(?!)"  # which matches nowhere
        starts = "|".join(re.escape(start) for start in sorted({spelling[0] for spelling in self.ids}))
        self._spelling = re.compile(pattern)
        # Any case, since a template may change it; overlapping occurrences, hence the look-ahead.
        self._start = re.compile(f"(?={pattern})({starts})", re.IGNORECASE)
        self._beginnings = {s[:n].casefold() for s in self.ids if not s[0].isalnum() for n in range(1, len(s))}
        self._longest = max(map(len, self.ids), default=0)

    def split(self, text: str) -> list[Span]:
        """Spans of a text in which every spelling of a control token is one."""
        spans, position = [], 0
        for match in self._spelling.finditer(text):
            if match.start() > position:
                spans.append(Span(text[position : match.start()]))
            spans.append(Span(match[0], self.ids[match[0]]))
            position = match.end()
        if position < len(text):
            spans.append(Span(text[position:]))
        return spans

    def break_up(self, text: str, marker: str) -> str:
        """The text with a marker inside everything that spells a control token, or could become one when it meets more.

        A text that ends like the beginning of one ("<|eot") gets its marker too, in case the next text goes on
        ("_id|>"). Beginnings that look like a word do not count: too many words would be broken for nothing.
        """
        text = self._start.sub(rf"\1{marker}", text)
        end = len(text.rstrip())
        lengths = range(1, min(self._longest, end) + 1)
        for start in [end - n + 1 for n in lengths if text[end - n : end].casefold() in self._beginnings]:
            text = text[:start] + marker + text[start:]
        return text


class Markers(NamedTuple):
    """Three characters that neither a conversation nor a template contains."""

    broken: str
    """Stands inside text that would otherwise spell a control token."""
    learn: str
    """Starts a learned part."""
    given: str
    """Ends a learned part."""

    @classmethod
    def absent_from(cls, texts: Iterable[str]) -> Markers:
        """Markers that none of the texts contains.

        Raises:
            ChatFormatError: the texts use up nearly all of the 240 candidates.
        """
        used = set().union(*texts)
        free = [marker for marker in _MARKERS if marker not in used]
        if len(free) < 3:
            raise ChatFormatError("the conversation holds nearly every variation selector that Unicode has")
        return cls(*free[:3])


def parse_marked(text: str, markers: Markers, control: ControlTokens) -> list[Span]:
    """Spans of a text rendered from texts that `ControlTokens.break_up` went through."""
    spans: list[Span] = []
    depth = 0
    for part in re.split(f"([{markers.learn}{markers.given}])", text):
        if part == markers.learn:
            depth += 1
        elif part == markers.given:
            depth -= 1
        else:
            for span in control.split(part):
                clean = span.text.replace(markers.broken, "") if span.token is None else span.text
                spans.append(replace(span, text=clean, learned=depth > 0))
    return spans


def spans_text(spans: Sequence[Span]) -> str:
    """What the spans spell."""
    return "".join(span.text for span in spans)


def _trie_pattern(words: Iterable[str]) -> str:
    """A regular expression that matches the longest of the words that starts at a place, in one pass."""
    heads: dict[str, list[str]] = {}
    for word in sorted(set(words)):
        heads.setdefault(word[:1], []).append(word[1:])
    optional = "" in heads
    heads.pop("", None)
    if not heads:
        return ""
    branches = [re.escape(head) + _trie_pattern(tails) for head, tails in heads.items()]
    if len(branches) == 1 and not optional:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + "?" * optional


def walk_strings(value: object) -> Iterator[str]:
    """Every string in plain JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walk_strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk_strings(item)
