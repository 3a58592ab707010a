"""Every kind of malformed conversation has its own clear error, which says where."""

from __future__ import annotations

from collections import UserString
from types import MappingProxyType

import pytest

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat_messages import MAX_DEPTH, check_messages, check_tools


def calling(**call: object) -> dict:
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}, **call}]}


@pytest.mark.parametrize(
    ("messages", "what", "where"),
    [
        ([], "no messages", None),
        ("Hello", "list of messages", None),
        ({"role": "user"}, "list of messages", None),
        (["Hello"], "a message is an object", "messages[0]"),
        ([None], "not null", "messages[0]"),
        ([{"content": "Hello"}], "no role", "messages[0]"),
        ([{"role": "usr", "content": "Hello"}], "no role 'usr'", "messages[0]"),
        ([{"role": 3, "content": "Hello"}], "no role 3", "messages[0]"),
        ([{"role": [], "content": "Hello"}], r"no role \[\]", "messages[0]"),
        ([{"role": "user"}], "no content", "messages[0]"),
        ([{"role": "user", "content": None}], "no content", "messages[0]"),
        ([{"role": "assistant", "content": None}], "no content", "messages[0]"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "no content", "messages[0]"),
        ([{"role": "user", "content": 3}], "type int", "messages[0]"),
        ([{"role": "user", "content": {"type": "text"}}], "type dict", "messages[0]"),
        ([{"role": "user", "content": ["Hello"]}], "content part", "messages[0].content[0]"),
        ([{"role": "user", "content": [{"text": "Hello"}]}], "content part", "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "no text", "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url", "messages[0].content[0]"),
        ([{"role": "user", "content": "Hello", "name": 3}], "name is of type int", "messages[0]"),
        ([{"role": "user", "content": "Hello", "tool_call_id": "c"}], "answers no tool call", "messages[0]"),
        ([{"role": "tool", "content": "Hello", "tool_call_id": 3}], "not a string", "messages[0]"),
        ([{"role": "user", "content": "Hello", 3: 4}], "key 3", "messages[0]"),
        ([{"role": "user", "content": "Hello", "x": {1, 2}}], "type set", "messages[0].x"),
        ([{"role": "user", "content": UserString("Hello")}], "UserString", "messages[0].content"),
        ([{"role": "user", "content": "Hello", "x": float("nan")}], "nan", "messages[0].x"),
        ([{**calling(), "role": "user"}], "cannot call tools", "messages[0]"),
        ([{"role": "assistant", "tool_calls": "f"}], "type str", "messages[0]"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "type str", "messages[0].tool_calls[0]"),
        ([calling(type="magic")], "'magic'", "messages[0].tool_calls[0]"),
        ([calling(id=3)], "id is of type int", "messages[0].tool_calls[0]"),
        ([calling(function="f")], "holds a function", "messages[0].tool_calls[0]"),
        ([calling(function={})], "needs a name", "messages[0].tool_calls[0].function.name"),
        ([calling(function={"name": ""})], "needs a name", "messages[0].tool_calls[0].function.name"),
    ],
)
def test_malformed_conversation(messages, what, where):
    with pytest.raises(ChatFormatError, match=what) as caught:
        check_messages(messages)
    assert caught.value.where == where


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", "3", '{"x": NaN}', "[" * 99_999, '{"x": ' * 99 + "1" + "}" * 99, [], 3]
)
def test_malformed_arguments(arguments):
    with pytest.raises(ChatFormatError) as caught:
        check_messages([calling(function={"name": "f", "arguments": arguments})])
    assert caught.value.where.startswith("messages[0].tool_calls[0].function.arguments")


def test_role_developer_gets_a_hint():
    with pytest.raises(ChatFormatError, match="system"):
        check_messages([{"role": "developer", "content": "Be kind."}])


def test_nesting_is_bounded():
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    with pytest.raises(ChatFormatError, match="levels deep"):
        check_messages([{"role": "user", "content": "Hello", "x": value}])


def test_nesting_without_end_is_refused():
    loop: dict = {"role": "user", "content": "Hello"}
    loop["x"] = loop
    with pytest.raises(ChatFormatError, match="levels deep"):
        check_messages([loop])


def test_parts_are_joined_and_arguments_parsed():
    parts = [{"type": "text", "text": "Good"}, {"type": "text", "text": " day"}]
    first, second, third = check_messages(
        [
            {"role": "user", "content": parts},
            calling(function={"name": "f", "arguments": '{"x": [1.5, "é"]}'}),
            calling(function={"name": "f", "arguments": ""}),
        ]
    )
    assert first.content == first.data["content"] == "Good day"
    assert second.content == ""
    assert second.tool_calls[0].arguments == {"x": [1.5, "é"]}
    assert second.data["tool_calls"][0]["function"]["arguments"] == {"x": [1.5, "é"]}
    assert third.tool_calls[0].arguments == {}


def test_messages_are_copied():
    message = {"role": "user", "content": "Hello", "x": {"y": [1]}}
    [checked] = check_messages([MappingProxyType(message)])
    message["x"]["y"].append(2)
    assert checked.data["x"] == {"y": [1]}


def test_lone_surrogates_are_replaced():
    [message] = check_messages([{"role": "user", "content": "a\ud800b"}])
    assert message.content == "a\ufffdb"


def test_fields_that_hold_nothing_are_no_unknown_fields():
    [message] = check_messages([{"role": "assistant", "content": "Yes", "refusal": None, "annotations": [], "mood": 1}])
    assert message.unknown_fields == ["mood"]


@pytest.mark.parametrize(
    ("tools", "what", "where"),
    [
        ("f", "list of definitions", "tools"),
        ({"type": "function"}, "list of definitions", "tools"),
        (["f"], "a tool definition is an object", "tools[0]"),
        ([{"type": "retrieval"}], "retrieval", "tools[0]"),
        ([{"type": "function"}], "function is an object", "tools[0].function"),
        ([{"type": "function", "function": {}}], "needs a name", "tools[0].function.name"),
        ([{"function": {"name": "f"}}, {"function": {"name": "f"}}], "two tools", "tools[1]"),
        ([{"function": {"name": "f", "parameters": print}}], "not plain JSON", "tools[0].function.parameters"),
    ],
)
def test_malformed_tools(tools, what, where):
    with pytest.raises(ChatFormatError, match=what) as caught:
        check_tools(tools)
    assert caught.value.where == where
