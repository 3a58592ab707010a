"""What is typed into a chat: commands, and messages of several lines."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from camelid.base.errors import ResourceError
from camelid.cli.chat import _read_message, _run_command, _talk
from camelid.cli.conversation import Conversation
from camelid.llm import LLM, Chunk


@pytest.fixture
def conversation(tiny_llm: LLM) -> Conversation:
    return Conversation(tiny_llm, sampling={"max_tokens": 3})


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    typed = iter(lines)

    def read(_: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""one', "", 'two"""'], "one\n\ntwo"),
        (['"""one"""'], "one"),
        (['"""', "one", '"""'], "one"),
    ],
)
def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch, lines: list[str], message: str) -> None:
    type_in(monkeypatch, *lines)
    assert _read_message() == message


def test_a_message_of_several_lines_is_no_command(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, '"""/usr/bin', 'what?"""', "/clear it", "/nothing")
    _talk(conversation, "tiny", None)
    said = capsys.readouterr().err
    assert "no command /usr" not in said
    assert "there is no command /nothing" in said
    assert "forgotten" in said


def test_saving_to_a_place_that_cannot_be_written_is_an_error_with_a_hint(
    conversation: Conversation, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="cannot write") as caught:
        _run_command(f"/save {tmp_path}", conversation)
    assert caught.value.hint


def test_saving_under_a_tilde_that_is_no_users_home(
    conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _run_command("/save ~no-such-user/chat.json", conversation)
    assert json.loads((tmp_path / "~no-such-user" / "chat.json").read_text()) == {"messages": []}


def test_ctrl_c_stops_the_reply_and_the_chat_goes_on(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = conversation.llm.stream

    def interrupted(*_: object, **__: object) -> Generator[Chunk]:
        monkeypatch.setattr(conversation.llm, "stream", real)
        yield Chunk("half a", [1])
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation.llm, "stream", interrupted)
    type_in(monkeypatch, "first", "second")
    _talk(conversation, "tiny", None)
    assert capsys.readouterr().out.startswith("half a [stopped]\n")
    assert [turn["content"] for turn in conversation.turns[:3]] == ["first", "half a", "second"]
    assert conversation.turns[3]["role"] == "assistant"
