"""What a chat keeps, drops and saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camelid.base.errors import ContextLengthError
from camelid.cli.conversation import Conversation
from camelid.llm import LLM

SAMPLING = {"max_tokens": 6, "ignore_eos": True}


@pytest.fixture
def conversation(tiny_llm: LLM) -> Conversation:
    return Conversation(tiny_llm, sampling=SAMPLING)


def test_questions_and_replies_are_remembered(conversation: Conversation, tiny_llm: LLM) -> None:
    expected = tiny_llm.generate([{"role": "user", "content": "a"}], **SAMPLING).text
    assert "".join(conversation.ask("a")) == expected
    assert conversation.messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": expected.strip()},
    ]
    assert (conversation.num_reply_tokens, conversation.finish_reason) == (6, "length")


def test_a_stopped_reply_keeps_what_was_said(conversation: Conversation) -> None:
    pieces = conversation.ask("a")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": said.strip()}
    assert conversation.finish_reason is None
    conversation.llm.engine.step()
    assert not conversation.llm.engine.has_unfinished


def test_a_full_context_drops_the_oldest_turns_and_keeps_the_system_message(tiny_llm: LLM) -> None:
    conversation = Conversation(tiny_llm, system="S", sampling=SAMPLING)
    for number in range(6):
        list(conversation.ask(f"question {number}"))
        assert len(tiny_llm.encode_prompt(conversation.messages)) <= tiny_llm.context_length
    roles = [message["role"] for message in conversation.messages]
    assert conversation.num_dropped > 0
    assert roles[:2] == ["system", "user"]
    assert conversation.messages[-2]["content"] == "question 5"


def test_a_message_longer_than_the_context_is_refused_and_forgotten(conversation: Conversation) -> None:
    list(conversation.ask("a"))
    before = conversation.messages
    with pytest.raises(ContextLengthError, match="too long"):
        conversation.ask("x" * 200)
    assert conversation.messages == before


def test_clear_keeps_the_system_message(tiny_llm: LLM) -> None:
    conversation = Conversation(tiny_llm, system="S", sampling=SAMPLING)
    list(conversation.ask("a"))
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "S"}]


def test_a_saved_conversation_is_json(conversation: Conversation, tmp_path: Path) -> None:
    list(conversation.ask("ä"))
    conversation.save(tmp_path / "a folder" / "chat.json")
    saved = json.loads((tmp_path / "a folder" / "chat.json").read_text(encoding="utf-8"))
    assert saved == {"messages": conversation.messages}
