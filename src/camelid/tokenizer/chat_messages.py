"""Conversations in OpenAI's message schema, checked once at the door.

    {"role": "system" | "user" | "assistant" | "tool", "content": str | [{"type": "text", "text": str}, ...] | None,
     "tool_calls": [{"id": str, "type": "function", "function": {"name": str, "arguments": str | dict}}],
     "tool_call_id": str, "name": str}

A user's content may have parts that show images, too: see `camelid.tokenizer.chat_images`.

Whatever passes is rebuilt from plain JSON values, so a renderer never sees a caller's object or a later change to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from camelid.base.errors import ChatFormatError, did_you_mean
from camelid.tokenizer.chat_images import Image, take_images

ROLES = ("system", "user", "assistant", "tool")
MAX_DEPTH = 64
"""Levels of lists and objects in tool arguments and schemas; JSON Schemas in use stay under ten."""

Json = dict[str, Any]

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ToolCall:
    """One call that an assistant's message makes."""

    name: str
    arguments: Json


@dataclass(frozen=True)
class Message:
    """One checked message.

    Args:
        role: one of `ROLES`.
        content: its text, "" where there is none (an assistant that only calls tools).
        tool_calls: the calls of an assistant's message.
        data: the whole message as plain JSON, text parts joined and call arguments parsed: what a template sees. Fields
            that are null are left out, as transformers does, since many templates would write "None". Where the content
            shows images it stays a list of parts, as templates for them expect.
        parts: the content as texts and images.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    data: Json
    parts: tuple[str | Image, ...] = ()

    @property
    def images(self) -> list[Image]:
        """Those that the message shows, in order."""
        return [part for part in self.parts if isinstance(part, Image)]

    @property
    def unknown_fields(self) -> list[str]:
        """Fields outside the schema that hold something; only a folder's own template can know what they mean."""
        known = {"role", "content", "tool_calls", "tool_call_id", "name"}
        return [key for key, value in self.data.items() if key not in known and value not in (None, "", [], {})]


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation as checked messages.

    Text parts of one message are joined without a separator, as templates that take parts do.

    Raises:
        ChatFormatError: a message outside the schema; `where` is its index.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ChatFormatError(
            f"a conversation is a list of messages, not {_kind(messages)}",
            hint='try [{"role": "user", "content": "Hello"}]',
        )
    if not messages:
        raise ChatFormatError("the conversation has no messages")
    return [_check_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Json]:
    """Tool definitions (`{"type": "function", "function": {"name": ..., ...}}`) as plain JSON.

    Raises:
        ChatFormatError: a definition outside the schema, or two of one name.
    """
    if tools is None:
        return []
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ChatFormatError(f"tools are a list of definitions, not {_kind(tools)}", where="tools")
    checked = []
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        data = _object(tool, where, "a tool definition")
        if data.get("type", "function") != "function":
            _refuse(f"a tool of type {data['type']!r} is unknown", where, 'the type is "function"')
        function = _object(data.get("function"), f"{where}.function", "a tool's function")
        name = _name(function.get("name"), f"{where}.function.name")
        if name in names:
            _refuse(f"two tools are named {name!r}", where)
        names.add(name)
        checked.append(data)
    return checked


def plain_json(value: Any, where: str, depth: int = 0) -> Any:
    """A deep copy made of None, bool, int, float, str, list and dict only; lone surrogates become U+FFFD.

    Raises:
        ChatFormatError: any other object, a number JSON has no spelling for, or nesting beyond `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        _refuse(f"values are nested more than {MAX_DEPTH} levels deep", where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            _refuse(f"{value} is no JSON number", where)
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                _refuse(f"the key {key!r} is not a string", where)
        return {plain_json(key, where): plain_json(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise ChatFormatError(f"a value {_kind(value)} is not plain JSON", where=where)


def _check_message(message: Mapping[str, Any], where: str) -> Message:
    if not isinstance(message, Mapping):
        _refuse(f"a message is an object, not {_kind(message)}", where)
    message, images = take_images(message, where)
    data = {key: value for key, value in _object(message, where, "a message").items() if value is not None}
    role = data.get("role")
    if role not in ROLES:
        what = "the message has no role" if role is None else f"there is no role {role!r}"
        hint = 'camelid calls it "system"' if role == "developer" else did_you_mean(str(role), ROLES)
        _refuse(what, where, hint)
    for key in ("name", "tool_call_id"):
        if not isinstance(data.get(key), str | None):
            _refuse(f"{key} is {_kind(data[key])}, not a string", where)
    if data.get("tool_call_id") is not None and role != "tool":
        _refuse(f"a message of the {role} answers no tool call", where, 'only messages of the role "tool" do')
    calls = _check_tool_calls(data, where)
    if images:
        shown = iter(images)
        parts = tuple(
            next(shown) if part == {"type": "image"} else _part_text(part, f"{where}.content[{index}]")
            for index, part in enumerate(data["content"])
        )
        content = "".join(part for part in parts if isinstance(part, str))
        return Message(role, content, calls, data, parts)
    content = _check_content(data, where, required=not calls)
    return Message(role, content, calls, data, (content,))


def _check_content(data: Json, where: str, *, required: bool) -> str:
    """The message's text; parts in `data` are replaced by it."""
    content = data.get("content")
    if content is None:
        if required:
            hint = 'an assistant\'s message needs "content" or "tool_calls"' if data["role"] == "assistant" else None
            _refuse("the message has no content", where, hint)
        return ""
    if isinstance(content, list):
        content = "".join(_part_text(part, f"{where}.content[{index}]") for index, part in enumerate(content))
        data["content"] = content
    if not isinstance(content, str):
        _refuse(f"content is {_kind(content)}, not a string or a list of text parts", where)
    return content


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        _refuse("a content part is an object with a type", where, 'try {"type": "text", "text": "..."}')
    if part["type"] != "text":
        _refuse(f"content parts of type {part['type']!r} cannot be rendered as text", where)
    if not isinstance(part.get("text"), str):
        _refuse("a text part has no text", where)
    return str(part["text"])


def _check_tool_calls(data: Json, where: str) -> tuple[ToolCall, ...]:
    """The message's tool calls; arguments in `data` that were JSON text are replaced by what it says."""
    calls = data.get("tool_calls")
    if calls is None or calls == []:
        data.pop("tool_calls", None)
        return ()
    if data["role"] != "assistant":
        _refuse(f"a message of the {data['role']} cannot call tools", where, "only the assistant's can")
    if not isinstance(calls, list):
        _refuse(f"tool_calls is {_kind(calls)}, not a list", where)
    return tuple(_check_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls))


def _check_tool_call(call: Any, where: str) -> ToolCall:
    if not isinstance(call, dict):
        _refuse(f"a tool call is an object, not {_kind(call)}", where)
    if call.get("type", "function") != "function":
        _refuse(f"a tool call of type {call['type']!r} is unknown", where, 'the type is "function"')
    if not isinstance(call.get("id"), str | None):
        _refuse(f"the call's id is {_kind(call['id'])}, not a string", where)
    function = call.get("function")
    if not isinstance(function, dict):
        _refuse(f"a tool call holds a function, not {_kind(function)}", where)
    name = _name(function.get("name"), f"{where}.function.name")
    arguments = function["arguments"] = _arguments(function.get("arguments", {}), f"{where}.function.arguments")
    return ToolCall(name, arguments)


def _arguments(arguments: Any, where: str) -> Json:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ChatFormatError(f"the call's arguments are no JSON: {error}", where=where) from None
        arguments = plain_json(arguments, where)
    if not isinstance(arguments, dict):
        _refuse(f"the call's arguments are {_kind(arguments)}, not an object", where)
    return arguments


def _object(value: Any, where: str, what: str) -> Json:
    if not isinstance(value, Mapping):
        _refuse(f"{what} is an object, not {_kind(value)}", where)
    copy: Json = plain_json(value, where)
    return copy


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name:
        _refuse("a function needs a name", where)
    return name


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _refuse(what: str, where: str, hint: str | None = None) -> NoReturn:
    raise ChatFormatError(what, where=where, hint=hint)
