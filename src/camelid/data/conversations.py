"""Conversations from files: OpenAI's messages, ShareGPT and Alpaca, told apart row by row by their keys.

    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}], "tools": [...]}
    {"system": "...", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]}
    {"system": "...", "instruction": "Greet", "input": "in French", "output": "Bonjour"}

A file holds one row a line (JSON Lines) or one list of rows; it may be compressed with gzip or Zstandard. Keys that the
formats do not know, such as ids and sources, describe the row and are not read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from camelid.base.errors import ChatFormatError, FormatError, did_you_mean
from camelid.data.compression import compression_of, open_binary
from camelid.tokenizer.chat_messages import check_messages, check_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

Json = dict[str, Any]

SHAREGPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_SPACE: Final = re.compile(r"\s*")


@dataclass(frozen=True)
class Conversation:
    """Messages in OpenAI's schema, checked, and where they come from."""

    messages: list[Json]
    tools: list[Json]
    where: str
    """The file and the line."""


def read_conversations(paths: Iterable[Path]) -> Iterator[Conversation]:
    """The conversations in some files, in order.

    Raises:
        NotFoundError: there is no such file.
        FormatError: a row is no conversation; `where` is the file, the line and the place in the row.
    """
    for path in paths:
        for line, row in _rows(path):
            yield parse_conversation(row, f"{path}:{line}")


def parse_conversation(row: object, where: str) -> Conversation:
    """A row of any of the formats as a conversation.

    Args:
        row: the decoded JSON.
        where: what messages call it.

    Raises:
        FormatError: the row is no conversation.
    """
    if not isinstance(row, dict):
        raise FormatError(f"a row is an object, not of type {type(row).__name__}", where=where)
    parse = next((parse for key, parse in _FORMATS.items() if key in row), None)
    if parse is None:
        raise FormatError(
            f"this row is no conversation: its keys are {', '.join(map(repr, row)) or 'none'}",
            where=where,
            hint=f"a conversation has one of the keys {', '.join(map(repr, _FORMATS))}",
        )
    try:
        messages, tools = parse(row)
        checked = check_messages(messages)
        return Conversation([message.data for message in checked], check_tools(tools), where)
    except ChatFormatError as error:
        where = f"{where}, {error.where}" if error.where else where
        raise FormatError(error.what, where=where, hint=error.hint) from error


def _openai(row: Json) -> tuple[list[Json], list[Json] | None]:
    return row["messages"], _tools(row)


def _sharegpt(row: Json) -> tuple[list[Json], list[Json] | None]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        _refuse("the conversations are no list", "conversations")
    messages = _system(row)
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            _refuse("a turn is an object", where)
        if "role" in turn:
            messages.append(turn)
            continue
        speaker = _text(turn, "from", where)
        if speaker not in SHAREGPT_ROLES:
            _refuse(f"there is no speaker {speaker!r}", where, did_you_mean(speaker, SHAREGPT_ROLES))
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": _text(turn, "value", where)})
    return messages, _tools(row)


def _alpaca(row: Json) -> tuple[list[Json], list[Json] | None]:
    messages = _system(row)
    request = _text(row, "instruction")
    if row.get("input"):
        request += "\n\n" + _text(row, "input")
    messages.append({"role": "user", "content": request})
    messages.append({"role": "assistant", "content": _text(row, "output")})
    return messages, None


_FORMATS: Final[dict[str, Callable[[Json], tuple[list[Json], list[Json] | None]]]] = {
    "messages": _openai,
    "conversations": _sharegpt,
    "instruction": _alpaca,
}
"""The key that tells a format → how its rows are read."""


def _system(row: Json) -> list[Json]:
    return [{"role": "system", "content": _text(row, "system")}] if row.get("system") else []


def _tools(row: Json) -> list[Json] | None:
    """The row's tools; some ShareGPT data has them as JSON text."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "[]")
        except (ValueError, RecursionError) as error:
            _refuse(f"the tools are no JSON: {error}", "tools")
    return tools or None


def _text(row: Json, key: str, where: str | None = None) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"is of type {type(value).__name__}, not a string"
        _refuse(f"{key!r} {what}", where)
    return str(value)


def _refuse(what: str, where: str | None, hint: str | None = None) -> NoReturn:
    raise ChatFormatError(what, where=where, hint=hint)


def _rows(path: Path) -> Iterator[tuple[int, object]]:
    """The rows of a file and the lines they start on, counted from 1."""
    lines = _lines(path)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if first.lstrip().startswith("["):
        yield from _list_rows(path, number, first + "".join(line for _, line in lines))
        return
    if first:
        yield number, _decoded(path, number, first)
    for number, line in lines:
        if line.strip():
            yield number, _decoded(path, number, line)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with open_binary(path, compression_of(path)) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"this line is no UTF-8: {error.reason}", where=f"{path}:{number}") from error


def _decoded(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"this line is no JSON: {error}", where=f"{path}:{number}") from error


def _list_rows(path: Path, number: int, text: str) -> Iterator[tuple[int, object]]:
    """The items of one JSON list that starts on line `number`, decoded one at a time."""
    decoder = json.JSONDecoder()
    counted, place = 0, _after_space(text, text.index("[") + 1)
    while not text.startswith("]", place):
        number, counted = number + text.count("\n", counted, place), place
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"this row is no JSON: {error}", where=f"{path}:{number}") from error
        yield number, row
        place = _after_space(text, place)
        if text.startswith(",", place):
            place = _after_space(text, place + 1)
        elif not text.startswith("]", place):
            number += text.count("\n", counted, place)
            raise FormatError("the list of rows goes on without a comma or ends too soon", where=f"{path}:{number}")
    if text[place + 1 :].strip():
        raise FormatError("something follows the list of rows", where=path)


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
