"""A conversation is the same text in camelid, transformers, llama.cpp's Jinja engine and llama-cpp-python."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chat_vocabularies as vocabularies
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat_jinja import SMOLLM2

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat import CHAT_FORMATS, chat_format_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.tokenizer.chat_format import ChatFormat

peer = pytest.importorskip(
    "llama_cpp_chat",
    reason="llama-cpp-python is not installed; this runs where `pip install camelid[peers]` has built it",
)
SOURCE = os.environ.get("LLAMA_CPP_SOURCE")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        SOURCE is None or shutil.which("c++") is None,
        reason="this runs where LLAMA_CPP_SOURCE names llama.cpp's sources: see benchmarks/llama_cpp_chat.py",
    ),
]

META = ("Llama-3.1-8B-Instruct", "Llama-3.2-3B-Instruct", "Llama-3.3-70B-Instruct")
"""Models whose templates llama.cpp keeps for its own tests."""
TEMPLATES = ("llama2", "llama3", "chatml", "SmolLM2", *META)
TOKENIZERS = {
    "llama2": vocabularies.llama2_tokenizer,
    "chatml": vocabularies.chatml_tokenizer,
    "SmolLM2": vocabularies.chatml_tokenizer,
}
WITHOUT_TOOLS = {"llama2", "chatml", "SmolLM2"}
ODD_SPACES = {ord(space): "" for space in map(chr, range(0x3001)) if space.isspace() and space not in " \t\n\r\v\f"}


@pytest.fixture(scope="module")
def llama_cpp_chat(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The renderer, built once for each version of its sources."""
    assert SOURCE is not None
    sources = [Path(SOURCE) / "common" / "chat.cpp", peer.MAIN]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    program = request.config.cache.mkdir("llama_cpp_chat") / version
    if not program.exists():
        peer.build(Path(SOURCE), program)
    with closing(peer.LlamaCppChat(program)) as chat:
        yield chat


def template_of(name: str) -> str:
    if name in META:
        assert SOURCE is not None
        return (Path(SOURCE) / "models" / "templates" / f"meta-llama-{name}.jinja").read_text(encoding="utf-8")
    return SMOLLM2 if name == "SmolLM2" else CHAT_FORMATS.load(name).template


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request: pytest.FixtureRequest) -> tuple[str, ChatFormat]:
    tokenizer = TOKENIZERS.get(request.param, vocabularies.llama3_tokenizer)()
    return request.param, chat_format_for(tokenizer, template=template_of(request.param))


def tame(value: Any) -> Any:
    """The value without what llama.cpp writes otherwise: some fractions, and spaces that only Python strips."""
    if isinstance(value, str):
        return value.translate(ODD_SPACES)
    if isinstance(value, float):
        return int(value % 8) + 0.25
    if isinstance(value, dict):
        return {tame(key): tame(item) for key, item in value.items()}
    return [tame(item) for item in value] if isinstance(value, list) else value


@st.composite
def conversations(draw: st.DrawFn, name: str) -> list[dict[str, Any]]:
    """Messages as OpenAI's clients send them: arguments as JSON text, calls and answers with their identifier."""
    turns = vocabularies.free_turns if name in WITHOUT_TOOLS else vocabularies.tool_turns
    if name == "llama2":
        turns = st.tuples(vocabularies.pairs, vocabularies.message("user")).map(lambda parts: [*parts[0], parts[1]])
    messages = [tame(vocabularies.plain(message)) for message in draw(vocabularies.systems) + draw(turns)]
    for message in messages:
        for call in message.get("tool_calls", []):
            call["id"] = "call"
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=draw(st.booleans()))
        if message["role"] == "tool":
            message["tool_call_id"] = "call"
    return messages


def for_templates(message: dict[str, Any]) -> dict[str, Any]:
    """The message as who calls a renderer of templates has to give it."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    given_fields = {key: value for key, value in message.items() if value is not None}
    return given_fields | ({"tool_calls": calls} if calls else {})


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_renderer_writes_the_same_text(chat, llama_cpp_chat, data):
    transformers = pytest.importorskip("transformers")
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    name, format = chat
    template, special = format.template, format.tokenizer.special
    spellings = {token: spelling for spelling, token in special.ids.items()}
    marks = {"bos": spellings.get(special.bos, ""), "eos": spellings[special.eos]}
    messages = data.draw(conversations(name))
    tools = None if name in WITHOUT_TOOLS else tame(data.draw(vocabularies.tools)) or None
    prompt = data.draw(st.booleans())
    variables = {"date_string": "21 September 2024"} if name in META else {}

    try:
        ids = format.render(messages, tools=tools, add_generation_prompt=prompt, **variables).ids
    except ChatFormatError:  # as every template here does then
        with pytest.raises(ValueError):
            llama_cpp_chat.render(template, messages, tools=tools, add_generation_prompt=prompt, **marks, **variables)
        return
    text = format.tokenizer.decode(ids).replace("<s> [INST]", "<s>[INST]")

    assert text == llama_cpp_chat.render(
        template, messages, tools=tools, add_generation_prompt=prompt, **marks, **variables
    )
    plain = [for_templates(message) for message in messages]
    other = Jinja2ChatFormatter(template, marks["eos"], marks["bos"], add_generation_prompt=prompt)
    assert text == other(messages=plain, tools=tools, **variables).prompt
    if name != "llama2":  # transformers cannot wrap its little SentencePiece vocabulary
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_object=format.tokenizer.backend, bos_token=marks["bos"] or None, eos_token=marks["eos"]
        )
        assert text == wrapped.apply_chat_template(
            plain,
            tools=tools,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
            **variables,
        )


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Shall I take an umbrella in Zürich?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Zürich"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": '{"rain": true}'},
]


def test_cria_reads_the_same_tokens_in_llama_cpp(llama_cpp_chat):
    import llama_cpp_peer

    import camelid
    from camelid.checkpoint.catalogue import resolve

    llm = camelid.load("cria", device="cpu")
    with closing(llama_cpp_peer.LlamaCpp(resolve("cria"), vocabulary_only=True)) as other:
        for tools in (None, [WEATHER]):
            text = llama_cpp_chat.render(other.chat_template, TALK, tools=tools, add_generation_prompt=True)
            assert other.encode(text, allow_special=True) == llm.encode_prompt(TALK, tools=tools)


@pytest.mark.parametrize(
    ("template", "content", "ours", "theirs"),
    [
        ("{{ messages[0].content | trim }}", "a\N{NO-BREAK SPACE}", "a", "a\N{NO-BREAK SPACE}"),
        ("{{ 0.123456789 | tojson }}", "", "0.123456789", "0.123457"),
        ("{{ 2.0 | tojson }}", "", "2.0", "2"),
        ("{{ 'a' if date_string }}", "", "", "a"),
    ],
    ids=["fewer kinds of space", "six digits", "whole numbers", "a date unasked"],
)
def test_where_llama_cpp_goes_its_own_way(llama_cpp_chat, template, content, ours, theirs):
    """What `docs/explanation/what-conversion-keeps.md` says of it."""
    chat, messages = chat_format_for(vocabularies.chatml_tokenizer(), template=template), [{"role": "user"}]
    messages[0]["content"] = content
    assert chat.tokenizer.decode(chat.render(messages).ids) == ours
    assert llama_cpp_chat.render(template, messages) == theirs
