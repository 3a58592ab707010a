"""Images in conversations: one control token each, which no text can write."""

from __future__ import annotations

import re
from pathlib import Path

import chat_vocabularies as vocabularies
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat import chat_format_for
from camelid.tokenizer.chat_jinja import JinjaFormat
from camelid.tokenizer.chat_messages import check_messages

TOKENIZER = vocabularies.vision_tokenizer()
NATIVE = chat_format_for(TOKENIZER, template=None)
IMAGE = TOKENIZER.special.ids["<|image|>"]
OTHERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for content in message['content'] %}
            {{- '<|image|>' if content['type'] == 'image' else content['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
"""How templates of models that read images go through parts."""

conversations = st.lists(
    vocabularies.showing() | vocabularies.message("assistant") | vocabularies.message("user"), min_size=1, max_size=4
)


def num_images(messages: list[dict]) -> int:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return sum(part["type"] != "text" for part in parts)


@settings(max_examples=50, deadline=None)
@given(conversations)
def test_native_format_and_its_template_give_the_same_ids_and_mask(messages: list[dict]) -> None:
    native = NATIVE.render(messages)
    rendered = JinjaFormat(TOKENIZER, NATIVE.template, seconds=60).render(messages)

    assert native.ids == rendered.ids
    assert native.mask == rendered.mask
    assert native.images == rendered.images


@settings(max_examples=50, deadline=None)
@given(conversations)
def test_image_tokens_are_as_many_as_images_whatever_the_texts_spell(messages: list[dict]) -> None:
    for chat in (NATIVE, JinjaFormat(TOKENIZER, OTHERS, seconds=60)):
        rendered = chat.render(messages, add_generation_prompt=True)

        assert rendered.ids.count(IMAGE) == len(rendered.images) == num_images(messages)


def test_an_image_stands_where_it_was_shown_and_its_source_comes_along() -> None:
    content = [
        {"type": "text", "text": " Compare "},
        {"type": "image", "image": Path("one.png")},
        {"type": "image_url", "image_url": {"url": "data:two", "detail": "high"}},
        {"type": "text", "text": " please: <|image|>\n"},
        {"type": "image"},
    ]

    rendered = NATIVE.render([{"role": "user", "content": content}])

    assert rendered.images == (Path("one.png"), "data:two", None)
    assert TOKENIZER.decode(rendered.ids) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "Compare <|image|><|image|> please: <|image|>\n<|image|><|eot_id|>"
    )
    assert rendered.ids.count(IMAGE) == 3


def test_messages_without_images_are_as_they_were() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    [message] = check_messages([{"role": "user", "content": content}])

    assert (message.data["content"], message.content, message.images) == ("ab", "ab", [])


@pytest.mark.parametrize(
    ("role", "part", "what", "where"),
    [
        ("user", {"type": "image_url"}, "no url", "messages[0].content[0]"),
        ("user", {"type": "image_url", "image_url": {}}, "no url", "messages[0].content[0]"),
        ("user", {"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}, "detail", None),
        ("user", {"type": "image", "path": "cat.png"}, "has no 'path'", "messages[0].content[0]"),
        ("user", {"type": "video"}, "'video'", "messages[0].content[0]"),
        ("assistant", {"type": "image"}, "only a user's", "messages[0]"),
        ("system", {"type": "image"}, "only a user's", "messages[0]"),
        ("tool", {"type": "image"}, "only a user's", "messages[0]"),
    ],
)
def test_malformed_images_are_refused(role: str, part: dict, what: str, where: str | None) -> None:
    with pytest.raises(ChatFormatError, match=what) as caught:
        check_messages([{"role": role, "content": [part]}])
    assert where is None or caught.value.where == where


@pytest.mark.parametrize("name", ["llama2", "chatml", "llama3"])
def test_a_model_without_a_place_for_images_refuses_them(name: str) -> None:
    tokenizer = getattr(vocabularies, f"{name}_tokenizer")()
    chat = chat_format_for(tokenizer, template=None, name=name)

    with pytest.raises(ChatFormatError, match="image"):
        chat.render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])


def test_a_template_that_drops_images_or_invents_them_is_refused() -> None:
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    dropping = JinjaFormat(TOKENIZER, "{{ messages[0].content[1].text }}")
    inventing = JinjaFormat(TOKENIZER, "<|image|>{{ messages[0].content }}")

    with pytest.raises(ChatFormatError, match="shows 1 images and its template has a place for 0"):
        dropping.render(message)
    with pytest.raises(ChatFormatError, match=re.escape("shows 0 images and its template has a place for 1")):
        inventing.render([{"role": "user", "content": "What?"}])
