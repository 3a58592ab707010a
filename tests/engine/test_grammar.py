"""Replies that follow a grammar: whatever the model, what comes out fits; what cannot be honoured is refused first."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import EngineError, SamplingError
from camelid.engine.engine import Engine
from camelid.engine.grammar import MAX_COMPILED, MAX_NESTING, GrammarCompiler
from camelid.engine.params import SamplingParams
from camelid.engine.vocabulary import Vocabulary
from camelid.llm import LLM

BYTES = Vocabulary(
    [bytes([i]) for i in range(256)] + [b""] * 3,
    {256: b"<e>", 257: b"<s>", 258: b"<x>"},
    lambda text: list(text.encode()),
)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema that the test speaks."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    match schema["type"]:
        case "object":
            properties = schema["properties"]
            names = set(schema["required"])
            return (
                isinstance(value, dict)
                and names <= set(value) <= set(properties)
                and all(fits(item, properties[name]) for name, item in value.items())
            )
        case "array":
            in_range = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return in_range and all(fits(item, schema["items"]) for item in value)
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
    return value is None


LEAVES = (
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 5))
    | st.builds(
        lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(-9, 9), st.integers(0, 50)
    )
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}])
    | st.builds(
        lambda v: {"enum": v},
        st.lists(st.integers(-(2**53), 2**53) | st.text(max_size=4) | st.none(), min_size=1, max_size=3),
    )
)
NAMES = st.text('abcé"\\ ', max_size=3)


def objects(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda properties, some: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:some],
            "additionalProperties": False,
        },
        st.dictionaries(NAMES, children, max_size=3),
        st.integers(0, 3),
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda children: (
        objects(children)
        | st.builds(lambda items: {"type": "array", "items": items, "minItems": 0, "maxItems": 2}, children)
        | st.builds(lambda options: {"anyOf": options}, st.lists(children, min_size=1, max_size=2))
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(SCHEMAS, st.integers(0, 1000))
def test_every_whole_reply_is_what_its_schema_describes(schema: dict[str, Any], seed: int) -> None:
    llm = random_llm()
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": seed, "top_p": 0.95}):
        reply = llm.generate("{", json_schema=schema, **sampling)
        if reply.finish_reason == "stop":
            assert fits(json.loads(reply.text), schema), (schema, reply.text)
        else:
            assert reply.num_prompt_tokens + len(reply.token_ids) == llm.context_length


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True), st.integers(0, 100))
def test_a_choice_is_one_of_the_texts(choice: list[str], seed: int) -> None:
    reply = random_llm().generate("x", choice=choice, temperature=2.0, seed=seed)
    assert reply.finish_reason == "stop"
    assert reply.text in choice


@pytest.mark.parametrize("pattern", ["(ab|c)+d", "[0-9]{4}-[0-9]{2}", "é{2,3}", "x*"])
def test_a_regex_matches_the_whole_reply(pattern: str) -> None:
    for seed in range(5):
        reply = random_llm().generate("x", regex=pattern, temperature=2.0, seed=seed)
        if reply.finish_reason == "stop":
            assert re.fullmatch(pattern, reply.text)


def test_lark_and_gbnf_describe_the_same_reply() -> None:
    lark = 'start: item ("," item)~1\nitem: /[a-c]/'
    gbnf = 'root ::= item ("," item)\nitem ::= [a-c]'
    for grammar in (lark, gbnf):
        for seed in range(4):
            reply = random_llm().generate("x", grammar=grammar, temperature=3.0, seed=seed)
            assert re.fullmatch("[a-c],[a-c]", reply.text)


def test_requests_with_and_without_grammars_run_in_one_batch(tiny_llm: LLM) -> None:
    plain = tiny_llm.generate("ab", max_tokens=10, ignore_eos=True)
    engine = tiny_llm.engine
    each = [
        SamplingParams(max_tokens=10, ignore_eos=True),
        SamplingParams(choice=("yes", "no")),
        SamplingParams(regex="[0-9]{3}"),
    ]
    completions = engine.generate([tiny_llm.encode_prompt("ab")] * 3, each)
    assert completions[0].token_ids == plain.token_ids
    assert bytes(completions[1].token_ids) in (b"yes", b"no")
    assert bytes(completions[2].token_ids).isdigit()


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"json_schema": {"type": "foo"}}, "Invalid type: foo"),
        ({"json_schema": {"not": {"type": "string"}}}, "not"),
        ({"json_schema": {"type": "object", "unevaluatedProperties": False}}, "unevaluatedProperties"),
        ({"json_schema": {"enum": []}}, "cannot be honoured"),
        ({"json_schema": {"enum": [2**53 + 1]}}, "beyond ±9007199254740992"),
        ({"json_schema": '{"const": -' + "9" * 5000 + "}"}, "beyond ±9007199254740992"),
        ({"json_schema": "{"}, "is no JSON"),
        ({"json_schema": nested(60_000)}, f"deeper than {MAX_NESTING}"),
        ({"regex": "(" * 60_000 + ")" * 60_000}, f"deeper than {MAX_NESTING}"),
        ({"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000}, f"deeper than {MAX_NESTING}"),
        ({"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000}, f"deeper than {MAX_NESTING}"),
        ({"regex": "(ab"}, "unclosed group"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": "root ::= missing"}, "missing"),
        ({"regex": "a" * 2_000_000}, "2000000 characters"),
        ({"regex": r"ab[^\s\S]"}, "no text follows the grammar"),
        ({"json_schema": {"$ref": "#"}}, "no text follows the grammar"),
        ({"grammar": "start: start"}, "no text follows the grammar"),
        ({"regex": "\ud800"}, "no UTF-8 form"),
        ({"choice": ["a"] * 100_000}, "cannot be honoured"),
        ({"json_schema": {"const": object()}}, "no JSON"),
        ({"json_schema": {"const": {1, 2}}}, "no JSON"),
        ({"json_schema": {"maximum": float("nan")}}, "cannot be honoured"),
        ({"json_schema": '{"maximum": NaN}'}, "cannot be honoured"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_runs(
    tiny_llm: LLM, settings: dict[str, Any], message: str
) -> None:
    for _ in range(2):
        with pytest.raises(SamplingError, match=message):
            tiny_llm.stream("ab", **settings).__next__()
    assert not tiny_llm.engine.has_unfinished
    assert len(tiny_llm.generate("ab", max_tokens=3, ignore_eos=True).token_ids) == 3


def test_a_schema_that_contains_itself_is_refused(tiny_llm: LLM) -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(SamplingError, match="nested deeper"):
        tiny_llm.generate("ab", json_schema=schema)
    deep: dict[str, Any] = {}
    for _ in range(60_000):
        deep = {"items": deep}
    with pytest.raises(SamplingError, match="nested deeper"):
        tiny_llm.generate("ab", json_schema=deep)


def test_a_grammar_that_the_bans_leave_no_way_ends_the_request_alone(tiny_llm: LLM) -> None:
    engine = tiny_llm.engine
    stuck = SamplingParams(regex="ab+c", banned_token_ids=(ord("b"),))
    requests = [engine.add([97], stuck), engine.add([97], SamplingParams(max_tokens=6, ignore_eos=True))]
    ends = {}
    while engine.has_unfinished:
        for output in engine.step():
            if output.finish_reason:
                ends[output.request_id] = output
    assert ends[requests[0]].finish_reason == "error"
    assert "no token can come next" in str(ends[requests[0]].error)
    assert ends[requests[1]].finish_reason == "length"
    with pytest.raises(EngineError, match="no token can come next"):
        tiny_llm.generate("a", regex="ab+c", banned_token_ids=(ord("b"),))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [('start: "ab" dead\ndead: dead', "no text follows"), ('start: "a" start', "Too many items")],
    ids=["a dead end", "without an end"],
)
def test_a_grammar_that_leads_nowhere_is_an_error_and_no_reply(tiny_llm: LLM, grammar: str, message: str) -> None:
    others = {"max_tokens": 8, "ignore_eos": True}
    expected = tiny_llm.generate("ab", **others)
    beside = tiny_llm.stream("ab", **others)
    pieces = [next(beside)]
    with pytest.raises(EngineError, match=message):
        tiny_llm.generate("x", grammar=grammar)
    assert "".join(piece.text for piece in [*pieces, *beside]) == expected.text
    assert not tiny_llm.engine.has_unfinished


def test_control_tokens_that_only_a_prompt_has_lie_outside_of_grammars() -> None:
    vocabulary = Vocabulary([b"a", b"b"], {2: b"<|end|>", 3: b"<|image|>"}, lambda text: ["ab".index(c) for c in text])
    compiler = GrammarCompiler(vocabulary, vocab_size=3, end_ids=(2,))
    scores = torch.zeros(3)
    compiler.compile(SamplingParams(regex="a")).mask(scores)
    assert scores.tolist() == [0.0, -math.inf, -math.inf]


def test_an_engine_without_a_vocabulary_refuses_what_speaks_of_text(tiny_llm: LLM) -> None:
    engine = Engine(tiny_llm.model)
    for params in (SamplingParams(choice=("a",)), SamplingParams(banned_strings=("a",))):
        with pytest.raises(SamplingError, match="knows token ids only"):
            engine.add([1], params)


def test_compiled_grammars_are_kept_and_bounded() -> None:
    compiler = GrammarCompiler(BYTES, 259, [256])
    for number in range(MAX_COMPILED + 10):
        compiler.compile(SamplingParams(regex=f"a{{{number + 1}}}"))
    assert len(compiler._compiled) == MAX_COMPILED
    first = compiler.compile(SamplingParams(regex="ab"))
    assert not first.accept(ord("a"))
    again = compiler.compile(SamplingParams(regex="ab"))
    assert not again.accept(ord("a"))
    assert again.accept(ord("b"))


def test_banned_strings_never_come_up(tiny_llm: LLM) -> None:
    for seed in range(5):
        sampling = {"max_tokens": 100, "temperature": 1.5, "seed": seed, "ignore_eos": True}
        free = tiny_llm.generate("ab", **sampling).token_ids
        banned = [chr(free[20]) if free[20] < 128 else "zz", "aa", "qu"]
        text = bytes(i for i in tiny_llm.generate("ab", banned_strings=banned, **sampling).token_ids if i < 256)
        assert not [word for word in banned if word.encode() in text]


_LLM: list[LLM] = []


def random_llm() -> LLM:
    """One model for all examples, with a context that most replies fit into."""
    if not _LLM:
        from byte_tokenizer import ByteTokenizer
        from camelid.model.llama import Llama, LlamaConfig

        config = LlamaConfig(
            vocab_size=259,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=200,
            initializer_range=0.3,
        )
        model = Llama.from_config(config)
        model.initialize(seed=0)
        _LLM.append(LLM(model, ByteTokenizer()))
    return _LLM[0]
