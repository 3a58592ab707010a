"""Llama 2's format: pairs of their own, a folded system prompt, refusals."""

from __future__ import annotations

import chat_vocabularies as vocabularies
import pytest

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat import chat_format_for
from camelid.tokenizer.chat_format import ChatFormat

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format_for(vocabularies.llama2_tokenizer(), template=None, name="llama2")


def turns(*contents: str, system: str | None = None) -> list[dict]:
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def test_each_pair_is_a_sequence_of_its_own(chat):
    encode = chat.tokenizer.encode
    assert chat.render(turns(" Hello\n", " Good day. ", "Who are you?"), add_generation_prompt=True).ids == [
        BOS, *encode("[INST] Hello [/INST] Good day. "), EOS,
        BOS, *encode("[INST] Who are you? [/INST]"),
    ]  # fmt: skip


def test_system_prompt_is_folded_into_the_first_user_text(chat):
    assert chat.render(turns("Hello ", system="Be kind.")).ids == [
        BOS,
        *chat.tokenizer.encode("[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello [/INST]"),
    ]


def test_reply_is_learned_with_the_spaces_around_it_and_its_end(chat):
    rendered = chat.render(turns("Hello", "Good day."))
    learned = [token for token, mask in zip(rendered.ids, rendered.mask, strict=True) if mask]
    assert b"".join(map(chat.tokenizer.token_bytes, learned)) == b" Good day. </s>"
    assert chat.stop_ids == (EOS,)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("place", range(3))
def test_contents_that_spell_a_tag_are_refused(chat, tag, place):
    messages = turns("Hello", "Good day.", system="Be kind.")
    messages[place]["content"] += tag
    with pytest.raises(ChatFormatError, match="spells the tag") as caught:
        chat.render(messages)
    assert caught.value.where == f"messages[{place}]"


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([{"role": "assistant", "content": "Hi"}], "messages[0]"),
        ([*turns("a"), *turns("b")], "messages[1]"),
        ([*turns("a", "b"), {"role": "assistant", "content": "c"}], "messages[2]"),
        ([*turns("a", "b"), {"role": "system", "content": "c"}], "messages[2]"),
        ([*turns("a"), {"role": "tool", "content": "c"}], "messages[1]"),
    ],
)
def test_roles_must_take_turns(chat, messages, where):
    with pytest.raises(ChatFormatError, match="take turns") as caught:
        chat.render(messages)
    assert caught.value.where == where


def test_system_prompt_alone_is_refused(chat):
    with pytest.raises(ChatFormatError, match="no user's message"):
        chat.render([{"role": "system", "content": "Be kind."}])


def test_prompt_must_end_with_the_user(chat):
    with pytest.raises(ChatFormatError, match="last message"):
        chat.render(turns("Hello", "Good day."), add_generation_prompt=True)


def test_tools_are_refused(chat):
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(ChatFormatError, match="no tools"):
        chat.render(turns("Hello"), tools=[tool])
