from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from camelid.base.errors import FormatError, NotFoundError
from camelid.data.conversations import Conversation, parse_conversation, read_conversations

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def read(path: Path, text: str) -> list[Conversation]:
    path.write_text(text, encoding="utf-8")
    return list(read_conversations([path]))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": HELLO, "id": 7},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}], "source": "x"},
        {"conversations": HELLO},
        {"instruction": "Hello", "input": "", "output": "Hi!"},
        {"instruction": "Hello", "output": "Hi!"},
        {"messages": [HELLO[0], {"role": "assistant", "content": [{"type": "text", "text": "Hi!"}]}]},
    ],
)
def test_every_format_says_the_same(row: dict[str, object]) -> None:
    conversation = parse_conversation(row, "row")

    assert conversation.messages == HELLO
    assert conversation.tools == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "Be kind."}, *HELLO]},
        {
            "system": "Be kind.",
            "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}],
        },
        {"system": "Be kind.", "instruction": "Hello", "output": "Hi!"},
    ],
)
def test_a_system_prompt_comes_first(row: dict[str, object]) -> None:
    assert parse_conversation(row, "row").messages == [{"role": "system", "content": "Be kind."}, *HELLO]


def test_alpacas_input_follows_the_instruction() -> None:
    conversation = parse_conversation({"instruction": "Translate", "input": "llama", "output": "Lama"}, "row")

    assert conversation.messages[0]["content"] == "Translate\n\nllama"


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_are_kept(tools: object) -> None:
    row = {"conversations": [*HELLO, {"from": "tool", "value": "3"}], "tools": tools}

    conversation = parse_conversation(row, "row")

    assert conversation.tools == [TOOL]
    assert conversation.messages[-1] == {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("row", "what", "where"),
    [
        ([], "a row is an object", "f:3"),
        ({"text": "a"}, "its keys are 'text'", "f:3"),
        ({}, "its keys are none", "f:3"),
        ({"messages": []}, "no messages", "f:3"),
        ({"messages": "hello"}, "a list of messages", "f:3"),
        ({"messages": [{"role": "pope", "content": "a"}]}, "no role 'pope'", "f:3, messages[0]"),
        ({"messages": [*HELLO, {"role": "user"}]}, "has no content", "f:3, messages[2]"),
        ({"messages": HELLO, "tools": [1]}, "a tool definition is an object", "f:3, tools[0]"),
        ({"messages": HELLO, "tools": "{"}, "the tools are no JSON", "f:3, tools"),
        ({"conversations": {}}, "no list", "f:3, conversations"),
        ({"conversations": ["a"]}, "a turn is an object", "f:3, conversations[0]"),
        ({"conversations": [{"from": "gtp", "value": "a"}]}, "no speaker 'gtp'", "f:3, conversations[0]"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "'from' is of type list", "f:3, conversations[0]"),
        ({"conversations": [{"from": "gpt", "value": 7}]}, "'value' is of type int", "f:3, conversations[0]"),
        ({"instruction": "a"}, "'output' is missing", "f:3"),
        ({"instruction": None, "output": "a"}, "'instruction' is missing", "f:3"),
        ({"instruction": "a", "input": 3, "output": "a"}, "'input' is of type int", "f:3"),
    ],
)
def test_a_malformed_row_is_named(row: object, what: str, where: str) -> None:
    with pytest.raises(FormatError, match=what) as caught:
        parse_conversation(row, "f:3")

    assert caught.value.where == where


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "conversations", "instruction", "output", "role", "content", "from", "tools"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def refusal_of(row: object) -> FormatError | None:
    try:
        parse_conversation(row, "f:1")
    except FormatError as error:
        return error
    return None


@given(row=json_values)
def test_no_row_raises_anything_but_a_format_error(row: object) -> None:
    refusal = refusal_of(row)

    assert refusal is None or str(refusal.where).startswith("f:1")


LINES = [json.dumps({"instruction": f"{i}", "output": "a\u2028b"}, ensure_ascii=False) for i in range(3)]


def test_rows_stand_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    conversations = read(path, f"\ufeff{LINES[0]}\n\n{LINES[1]}\r\n  \n{LINES[2]}")

    assert [c.where for c in conversations] == [f"{path}:{line}" for line in (1, 3, 5)]
    assert [c.messages[0]["content"] for c in conversations] == ["0", "1", "2"]


def test_rows_stand_in_one_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"

    conversations = read(path, f"\n[\n  {LINES[0]},\n{LINES[1]}, {LINES[2]}\n]\n")

    assert [c.where for c in conversations] == [f"{path}:{line}" for line in (3, 4, 4)]
    assert [c.messages[0]["content"] for c in conversations] == ["0", "1", "2"]


def test_compressed_files_are_read_alike(tmp_path: Path) -> None:
    data = "\n".join(LINES).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(data))

    conversations = list(read_conversations([tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl.zst"]))

    assert [c.messages[0]["content"] for c in conversations] == ["0", "1", "2"] * 2


@pytest.mark.parametrize("text", ["", "\n \n", "[]", " [ ] "])
def test_a_file_may_hold_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path / "rows.json", text) == []


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        (f"{LINES[0]}\n{{\n", "this line is no JSON", 2),
        (f"{LINES[0]}\n\n[]\n", "a row is an object", 3),
        (f"[{LINES[0]},\n\n{{,}}]", "this row is no JSON", 3),
        (f"[{LINES[0]},\n7]", "a row is an object", 2),
        (f"[\n{LINES[0]}\n{LINES[1]}]", "without a comma", 3),
        (f"[\n{LINES[0]}\n", "ends too soon", 3),
        (f"[\n{LINES[0]},\n", "this row is no JSON", 3),
        ("[" * 100_000, "no JSON", 1),
        ("{}\n" + '{"a":' * 100_000, "keys are none", 1),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path: Path, text: str, what: str, line: int) -> None:
    path = tmp_path / "rows.json"

    with pytest.raises(FormatError, match=what) as caught:
        read(path, text)

    assert caught.value.where == f"{path}:{line}"


def test_something_after_the_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="something follows"):
        read(tmp_path / "rows.json", f"[{LINES[0]}] {LINES[1]}")


def test_a_wrong_encoding_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES[0].encode() + b'\n{"instruction": "caf\xe9"}\n')

    with pytest.raises(FormatError, match="no UTF-8") as caught:
        list(read_conversations([path]))

    assert caught.value.where == f"{path}:2"


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES[0].encode())[:-9])

    with pytest.raises(FormatError) as caught:
        list(read_conversations([path]))

    assert caught.value.where == str(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list(read_conversations([tmp_path / "none.jsonl"]))
