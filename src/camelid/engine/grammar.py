"""Replies that follow a grammar: JSON Schema, regular expressions, choices, Lark and GBNF, by llguidance.

A grammar is compiled once per engine and copied for each request. It needs the bytes of the tokens, which the engine is
given as a `Vocabulary`.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch

from camelid.base.errors import EngineError, SamplingError
from camelid.engine.params import GRAMMARS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from camelid.engine.params import SamplingParams
    from camelid.engine.vocabulary import Vocabulary

MAX_COMPILED = 128
"""Grammars that are kept compiled."""

MAX_NESTING = 100
"""Brackets within brackets, and levels of a schema. The compiler recurses, and a stack has an end."""

MAX_WHOLE = 2**53
"""The largest whole number up to which floats have all of them."""

MAX_BYTES = 2**20
"""Of a grammar's text."""


class Grammar:
    """How far one reply has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits_V: Tensor) -> None:
        """Rule out all tokens that cannot come next, in place; the end tokens can where the reply may end."""
        mask = self._matcher.compute_bitmask()
        if self.is_stuck:  # in a dead end the mask has the end tokens, and the matcher finds out by it
            logits_V.fill_(-math.inf)
            return
        bits = np.frombuffer(mask, dtype=np.uint8)
        allowed_V = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(logits_V)].astype(np.bool_))
        logits_V[: len(allowed_V)].masked_fill_(~allowed_V.to(logits_V.device), -math.inf)
        logits_V[len(allowed_V) :] = -math.inf

    def accept(self, token: int) -> bool:
        """Go on by a token; whether the reply is whole and can't be longer.

        Raises:
            EngineError: the grammar is too complex to follow any further.
        """
        if not self._matcher.consume_token(token):
            raise EngineError(f"the grammar cannot go on: {self.problem}")
        return bool(self._matcher.is_stopped())

    @property
    def is_stuck(self) -> bool:
        """Whether nothing can come next, not even the end; known once `mask` or `accept` has met it."""
        return bool(self._matcher.is_error())

    @property
    def problem(self) -> str:
        """What keeps the reply from going on, in a line."""
        line = _first_line(self._matcher.get_error())
        return "no text follows the grammar from here" if line.startswith("NoExtension") else line or "no token fits"


class GrammarCompiler:
    """Compiles what requests ask for, and keeps the latest.

    Args:
        vocabulary: the tokens' bytes.
        vocab_size: of the model.
        end_ids: the model's end tokens, which may come where a reply may end.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, end_ids: Collection[int]) -> None:
        # Without end tokens, an id that no model can give stands for the end.
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(vocabulary, vocab_size)), eos_token=sorted(end_ids) or [vocab_size]
        )
        self._compiled: OrderedDict[tuple[str, str], llguidance.LLMatcher] = OrderedDict()

    def compile(self, params: SamplingParams) -> Grammar:
        """The grammar of a new request that has one.

        Raises:
            SamplingError: it is broken, too large or not supported.
        """
        [kind] = [name for name in GRAMMARS if getattr(params, name) not in (None, ())]
        text = _as_text(getattr(params, kind), kind)
        matcher = self._compiled.pop((kind, text), None) or self._compile(kind, text)
        self._compiled[kind, text] = matcher
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return Grammar(matcher.deep_copy())

    def _compile(self, kind: str, text: str) -> llguidance.LLMatcher:
        try:
            definition = _definition(kind, text)
            matcher = llguidance.LLMatcher(self._tokenizer, definition, log_level=0)
        except (ValueError, RuntimeError) as error:
            raise SamplingError(f"this {kind} cannot be honoured: {_first_line(str(error))}", where=kind) from error
        if matcher.is_error():
            problem = _first_line(matcher.get_error())
            raise SamplingError(f"this {kind} cannot be honoured: {problem}", where=kind)
        beginning = Grammar(matcher.deep_copy())
        beginning.mask(torch.zeros(1))
        if beginning.is_stuck:
            raise SamplingError(f"this {kind} cannot be honoured: {beginning.problem}", where=kind)
        if warnings := matcher.get_grammar_warnings():
            raise SamplingError(f"this {kind} cannot be honoured as it stands: {warnings[0]}", where=kind)
        return matcher


class _Tokens:
    """The vocabulary in llguidance's terms."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        known = vocabulary.token_bytes
        tokens = [known[i] if i < len(known) else b"" for i in range(vocab_size)]
        # Control tokens that only a prompt has (an image's) lie outside.
        control = {token: name for token, name in vocabulary.control.items() if token < vocab_size}
        for token, name in control.items():
            tokens[token] = name
        self.tokens = [*tokens, b"<|the end|>"]
        self.special_token_ids = [*control, vocab_size]
        self.eos_token_id = vocab_size
        self.bos_token_id = None
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _definition(kind: str, text: str) -> str:
    matcher = llguidance.LLMatcher
    if kind == "json_schema":
        return str(matcher.grammar_from_json_schema(text))
    if kind == "regex":
        return str(matcher.grammar_from_regex(text))
    if kind == "choice":
        # A text as alternatives of a rule: Lark's strings are JSON's.
        return str(matcher.grammar_from_lark("start: " + " | ".join(map(_quoted, json.loads(text)))))
    return str(matcher.grammar_from_lark(_lark_of_gbnf(text) if "::=" in text else text))


def _lark_of_gbnf(text: str) -> str:
    try:
        return str(llguidance.gbnf_to_lark.any_to_lark(text))
    except Exception as error:
        raise ValueError(str(error)) from error


def _quoted(text: str) -> str:
    """As a string of Lark's, which takes no control character as it is, and escaped ones as JSON has them."""
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _as_text(value: str | Mapping[str, Any] | tuple[str, ...], kind: str) -> str:
    """The canonical text of a grammar, refused if it is too large or too deep to compile.

    Raises:
        SamplingError: it is, or a schema is no JSON.
    """
    if not isinstance(value, str):
        _refuse_deep(value, kind)
    try:
        text = value if isinstance(value, str) else json.dumps(value)
        text.encode()
    except (TypeError, ValueError) as error:
        raise SamplingError(f"this {kind} has no JSON or no UTF-8 form: {error}", where=kind) from error
    if len(text) > MAX_BYTES:
        raise SamplingError(f"this {kind} has {len(text)} characters and may have {MAX_BYTES}", where=kind)
    if kind != "choice" and _nesting(text) > MAX_NESTING:
        raise _too_deep(kind)
    if kind == "json_schema":
        try:
            json.loads(text, parse_int=_whole_number)
        except ValueError as error:
            raise SamplingError(f"the JSON schema is no JSON: {error}", where=kind) from error
    return text


def _whole_number(digits: str) -> int:
    """The number, refused if the compiler, which takes all numbers for floats, would make another of it."""
    if len(digits) > len(str(MAX_WHOLE)) + 1 or abs(int(digits)) > MAX_WHOLE:
        raise SamplingError(
            f"this json_schema cannot be honoured: {digits[:40]} is beyond ±{MAX_WHOLE}",
            where="json_schema",
            hint="give such a number as a string",
        )
    return int(digits)


def _refuse_deep(value: object, kind: str) -> None:
    """Walks without recursion, and not for ever where a value contains itself."""
    level: list[object] = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list | tuple)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if len(level) > MAX_BYTES:
            raise SamplingError(f"this {kind} is too large", where=kind)
        if not level:
            return
    raise _too_deep(kind)


def _nesting(text: str) -> int:
    depth = deepest = 0
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _too_deep(kind: str) -> SamplingError:
    return SamplingError(f"this {kind} is nested deeper than {MAX_NESTING} levels", where=kind, hint="flatten it")


def _first_line(text: str) -> str:
    """What is wrong, in a line: a regex's errors come last, below a drawing of where."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    return line.removeprefix("error: ")
