"""What is typed into a chat: commands, and messages of several lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camelid.base.errors import ResourceError
from camelid.cli.chat import _read_message, _run_command, _talk
from camelid.cli.conversation import Conversation
from camelid.llm import LLM


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
    _talk(conversation, "tiny", stats=False)
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
