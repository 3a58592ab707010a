"""Which format a model gets, and what every format keeps to."""

from __future__ import annotations

import subprocess
import sys

import chat_vocabularies as vocabularies
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from camelid.base.errors import ChatFormatError, NotFoundError
from camelid.tokenizer.chat import CHAT_FORMATS, chat_format_for
from camelid.tokenizer.chat_format import ChatFormat, Rendered
from camelid.tokenizer.chat_jinja import JinjaFormat
from camelid.tokenizer.chat_llama2 import TAGS

TOKENIZERS = {
    "llama2": vocabularies.llama2_tokenizer,
    "llama3": vocabularies.llama3_tokenizer,
    "chatml": vocabularies.chatml_tokenizer,
}
TURNS = {
    "llama2": st.tuples(vocabularies.systems, vocabularies.pairs, vocabularies.message("user").map(lambda m: [m])),
    "llama3": st.tuples(vocabularies.systems, vocabularies.tool_turns),
    "chatml": st.tuples(vocabularies.systems, vocabularies.free_turns),
}


def conversations(name: str) -> st.SearchStrategy[list[dict]]:
    return TURNS[name].map(lambda parts: [message for part in parts for message in part])


def spells_a_tag(messages: list[dict]) -> bool:
    return any(tag in vocabularies.plain(message)["content"] for message in messages for tag in TAGS)


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def pair(request: pytest.FixtureRequest) -> tuple[ChatFormat, JinjaFormat]:
    """A native format, and its own template rendered as a stranger's."""
    tokenizer = TOKENIZERS[request.param]()
    native = chat_format_for(tokenizer, template=None, name=request.param)
    return native, JinjaFormat(tokenizer, native.template, seconds=60)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_native_format_and_its_template_give_the_same_ids_and_mask(pair, data):
    name = pair[0].name
    messages = data.draw(conversations(name))
    options: dict = {"add_generation_prompt": data.draw(st.booleans())}
    if name == "llama3":
        options["tools"] = data.draw(vocabularies.tools | st.none())
        options["date_string"] = data.draw(st.sampled_from([None, "21 September 2024", "<|eot_id|>"]))
        options["builtin_tools"] = data.draw(st.sampled_from([None, [], ["brave_search"], ["code_interpreter"]]))

    try:
        native = pair[0].render(messages, **options)
    except ChatFormatError:
        with pytest.raises(ChatFormatError):
            pair[1].render(messages, **options)
    else:
        own = pair[1].render(messages, **options)
        assert native.ids == own.ids
        assert native.mask == own.mask


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_only_the_format_writes_control_tokens(pair, data):
    native, _ = pair
    messages = data.draw(conversations(native.name))
    messages = [message for message in messages if "tool_calls" not in message]  # a call has control tokens of its own
    assume(messages and not (native.name == "llama2" and spells_a_tag(messages)))
    quiet = [{**message, "content": "x"} for message in messages]

    def controls(rendered: Rendered) -> list[int]:
        return [i for i in rendered.ids if i in native.tokenizer.special.ids.values()]

    assert controls(native.render(messages)) == controls(native.render(quiet))


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_mask_covers_the_replies_and_their_end_tokens(name):
    tokenizer = TOKENIZERS[name]()
    chat = chat_format_for(tokenizer, template=None, name=name)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A café ☺"},
    ]

    rendered = chat.render(messages)

    learned = [token for token, mask in zip(rendered.ids, rendered.mask, strict=True) if mask]
    end = chat.stop_ids[0]
    assert learned[-1] == end
    assert learned.count(end) == 2
    assert tokenizer.decode([i for i in learned if i != end]).replace(" ", "") == "Goodday.Acafé☺"


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_generation_prompt_and_what_is_learned_make_up_the_whole(name):
    chat = chat_format_for(TOKENIZERS[name](), template=None, name=name)
    question = [{"role": "user", "content": " Hello\n"}]

    prompt = chat.render(question, add_generation_prompt=True)
    whole = chat.render([*question, {"role": "assistant", "content": "Good day."}])

    learned = [token for token, mask in zip(whole.ids, whole.mask, strict=True) if mask]
    assert not any(prompt.mask)
    assert whole.ids[: len(prompt.ids) + len(learned)] == prompt.ids + learned


def test_vocabulary_tells_the_format_of_a_model_without_template():
    assert chat_format_for(vocabularies.llama3_tokenizer(), template=None).name == "llama3"
    assert chat_format_for(vocabularies.chatml_tokenizer(), template=None).name == "chatml"


def test_base_model_has_no_chat_format():
    with pytest.raises(ChatFormatError, match="without a chat format") as caught:
        chat_format_for(vocabularies.llama2_tokenizer(), template=None)
    assert "llama2" in (caught.value.hint or "")


def test_template_of_the_folder_wins_over_the_vocabulary():
    chat = chat_format_for(vocabularies.llama3_tokenizer(), template="{{ messages[0].content }}<|eot_id|>")
    ids = chat.render([{"role": "user", "content": "Hello"}]).ids
    assert chat.tokenizer.decode(ids) == "Hello<|eot_id|>"


def test_exported_template_comes_back_as_its_native_format():
    native = chat_format_for(vocabularies.llama3_tokenizer(), template=None)
    assert type(chat_format_for(native.tokenizer, template=native.template)) is type(native)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(NotFoundError, match="llama3"):
        chat_format_for(vocabularies.llama3_tokenizer(), template=None, name="lama3")


def test_named_format_must_fit_the_vocabulary():
    with pytest.raises(ChatFormatError, match=r"<\|begin_of_text\|>"):
        chat_format_for(vocabularies.chatml_tokenizer(), template=None, name="llama3")


def test_unknown_variable_is_refused():
    chat = chat_format_for(vocabularies.llama3_tokenizer(), template=None)
    with pytest.raises(ChatFormatError, match="date_string"):
        chat.render([{"role": "user", "content": "Hello"}], date_strin="today")


def test_field_that_a_format_cannot_write_is_refused():
    chat = chat_format_for(vocabularies.llama3_tokenizer(), template=None)
    with pytest.raises(ChatFormatError, match="reasoning_content") as caught:
        chat.render([{"role": "assistant", "content": "Yes", "reasoning_content": "Why not"}])
    assert caught.value.where == "messages[0]"


def test_rendering_keeps_no_reference_to_the_callers_messages():
    chat = chat_format_for(
        vocabularies.chatml_tokenizer(), template="{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    rendered = chat.render(messages)
    messages[1]["content"] = "Changed"
    assert chat.tokenizer.decode([i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m]) == "Good day"


def test_every_registered_format_is_loadable_under_its_name():
    for name in CHAT_FORMATS.names():
        assert CHAT_FORMATS.load(name).name == name


def test_importing_the_formats_imports_neither_jinja_nor_torch():
    code = (
        "import sys, camelid.tokenizer.chat as chat; [chat.CHAT_FORMATS.load(n) for n in chat.CHAT_FORMATS.names()];"
        "print(sorted({'jinja2', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
