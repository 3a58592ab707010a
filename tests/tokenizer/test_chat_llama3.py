"""Llama 3's format against the worked examples that Meta publishes with the models.

The examples are short excerpts of the prompt format documents of Llama 3.1 and 3.2 (models/llama3_1 and models/llama3_2
of the llama-models repository, under the Llama Community License), prompts only.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import chat_vocabularies as vocabularies
import pytest

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat import chat_format_for
from camelid.tokenizer.chat_format import ChatFormat
from camelid.tokenizer.chat_jinja import JinjaFormat

SYSTEM, USER = "<|start_header_id|>system<|end_header_id|>\n\n", "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT, IPYTHON = USER.replace("user", "assistant"), USER.replace("user", "ipython")
DATE = "21 September 2024"
SONGS = {
    "type": "function",
    "function": {
        "name": "trending_songs",
        "description": "Returns the trending songs on a Music site",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format_for(vocabularies.llama3_tokenizer(), template=None)


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def system(content: str) -> dict:
    return {"role": "system", "content": content}


def call(name: str, content: str | None = None, **arguments: object) -> dict:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}


def prompt(chat: ChatFormat, *messages: dict, **options: object) -> str:
    return chat.tokenizer.decode(chat.render(messages, add_generation_prompt=True, **options).ids)


def test_conversation_of_user_and_assistant(chat):
    question = "Answer who are you in the form of jeopardy?"
    assert prompt(chat, system("You are a helpful assistant"), user(question)) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Answer who are you in the form of jeopardy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_builtin_tools_in_the_system_prompt(chat):
    # The document's example ends the system text with a newline, which goes where contents are stripped.
    text = prompt(
        chat, system("You are a helpful assistant.\n"), user("Search the web for the latest price of 1oz gold?"),
        builtin_tools=["brave_search", "wolfram_alpha"], date_string=DATE,
    )  # fmt: skip
    assert text == (
        f"<|begin_of_text|>{SYSTEM}Environment: ipython\nTools: brave_search, wolfram_alpha\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 21 September 2024\n\nYou are a helpful assistant.<|eot_id|>"
        f"{USER}Search the web for the latest price of 1oz gold?<|eot_id|>{ASSISTANT}"
    )


def test_code_interpreter(chat):
    question = "Write code to check if number is prime, use that to see if the number 7 is prime"
    code = "def is_prime(n):\n    return True\n\nprint(is_prime(7))  # Output: True"
    messages = [user(question), call("code_interpreter", code=code)]
    assert prompt(chat, *messages, builtin_tools=["code_interpreter"]) == (
        f"<|begin_of_text|>{SYSTEM}Environment: ipython<|eot_id|>{USER}{question}<|eot_id|>"
        f"{ASSISTANT}<|python_tag|>{code}<|eom_id|>{ASSISTANT}"
    )


def test_builtin_call_and_its_result(chat):
    messages = [
        user("What is the 100th decimal of pi?"),
        call("wolfram_alpha", query="100th decimal of pi"),
        {"role": "tool", "content": '{"queryresult": {"success": true}}'},
    ]
    assert prompt(chat, *messages, builtin_tools=["brave_search", "wolfram_alpha"]) == (
        f"<|begin_of_text|>{SYSTEM}Environment: ipython\nTools: brave_search, wolfram_alpha<|eot_id|>"
        f"{USER}What is the 100th decimal of pi?<|eot_id|>"
        f'{ASSISTANT}<|python_tag|>wolfram_alpha.call(query="100th decimal of pi")<|eom_id|>'
        f'{IPYTHON}{{"queryresult": {{"success": true}}}}<|eot_id|>{ASSISTANT}'
    )


def test_custom_tools_are_shown_in_a_message_of_their_own(chat):
    text = prompt(
        chat, system("You are a helpful assistant."), user("Use tools to get latest trending songs"),
        tools=[SONGS], date_string=DATE,
    )  # fmt: skip
    assert text == (
        f"<|begin_of_text|>{SYSTEM}Environment: ipython\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 21 September 2024\n\nYou are a helpful assistant.<|eot_id|>"
        f"{USER}Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\nHere is a list of functions in JSON format:\n"
        '{\n    "type": "function",\n    "function": {\n        "name": "trending_songs",\n'
        '        "description": "Returns the trending songs on a Music site",\n        "parameters": {\n'
        '            "type": "object",\n            "properties": {\n                "n": {\n'
        '                    "type": "integer"\n                }\n            }\n        }\n    }\n}\n\n'
        "Return function calls in JSON format.<|eot_id|>"
        f"{USER}Use tools to get latest trending songs<|eot_id|>{ASSISTANT}"
    )


@pytest.mark.parametrize(
    ("messages", "options", "begin", "end"),
    [
        ([], {"tools": [SONGS]}, "<|python_tag|>", "<|eom_id|>"),
        ([system("Environment: ipython")], {}, "<|python_tag|>", "<|eom_id|>"),
        ([system("Functions: trending_songs")], {}, "", "<|eot_id|>"),
    ],
)
def test_custom_call_awaits_its_result_where_the_environment_runs_tools(chat, messages, options, begin, end):
    rendered = chat.render([*messages, user("Songs?"), call("trending_songs", n="10", genre="all")], **options)
    learned = [token for token, mask in zip(rendered.ids, rendered.mask, strict=True) if mask]
    assert chat.tokenizer.decode(learned) == (
        begin + '{"type": "function", "name": "trending_songs", "parameters": {"n": "10", "genre": "all"}}' + end
    )


def test_system_text_and_tools_in_it_are_left_as_they_are(chat):
    # Llama 3.2 and 3.3: definitions in the system prompt, calls as a Python list, all of it ordinary content.
    messages = [
        system("You are an expert in composing functions."),
        user("What is the weather in SF?"),
        {"role": "assistant", "content": "[get_weather(city='San Francisco', metric='celsius')]"},
        {"role": "tool", "content": '"25 C"'},
    ]
    assert prompt(chat, *messages) == (
        f"<|begin_of_text|>{SYSTEM}You are an expert in composing functions.<|eot_id|>"
        f"{USER}What is the weather in SF?<|eot_id|>"
        f"{ASSISTANT}[get_weather(city='San Francisco', metric='celsius')]<|eot_id|>"
        f'{IPYTHON}"25 C"<|eot_id|>{ASSISTANT}'
    )


def test_contents_are_stripped(chat):
    assert prompt(chat, user(" \nHello\t ")) == f"<|begin_of_text|>{USER}Hello<|eot_id|>{ASSISTANT}"


def test_spelt_control_tokens_stay_text(chat):
    eot = chat.tokenizer.special.ids["<|eot_id|>"]
    rendered = chat.render([user("say <|eot_id|>")])
    assert rendered.ids.count(eot) == 1
    assert rendered.ids[-1] == eot
    assert "say <|eot_id|><|eot_id|>" in chat.tokenizer.decode(rendered.ids)


def test_stop_ids(chat):
    ids = chat.tokenizer.special.ids
    assert set(chat.stop_ids) == {ids["<|eot_id|>"], ids["<|eom_id|>"], ids["<|end_of_text|>"]}


@pytest.mark.parametrize(
    ("message", "options", "what"),
    [
        (call("brave_search", query='a "b"'), {"builtin_tools": ["brave_search"]}, "double quote"),
        (call("brave_search", q="a"), {"builtin_tools": ["brave_search"]}, "one text, query"),
        (call("code_interpreter", code=1), {"builtin_tools": ["code_interpreter"]}, "one text, code"),
        ({**call("f"), "tool_calls": call("f")["tool_calls"] * 2}, {}, "one tool call at most"),
    ],
)
def test_call_that_cannot_be_written_is_refused(chat, message, options, what):
    with pytest.raises(ChatFormatError, match=what) as caught:
        chat.render([user("Hello"), message], **options)
    assert caught.value.where == "messages[1]"


@pytest.mark.parametrize("options", [{"date_string": 2024}, {"builtin_tools": "brave_search"}, {"builtin_tools": [1]}])
def test_variables_of_the_wrong_type_are_refused(chat, options):
    with pytest.raises(ChatFormatError, match=next(iter(options))):
        chat.render([user("Hello")], **options)


def test_ids_of_the_released_vocabulary():
    """Ids of Meta's tokenizer.model, worked out with the model's own pieces (see the format's source)."""
    spec = importlib.util.find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llama-models, which carries Llama 3's vocabulary, is not installed")
    from camelid.tokenizer import load_tokenizer

    package = Path(next(iter(spec.submodule_search_locations)))
    chat = chat_format_for(load_tokenizer(package / "llama3" / "tokenizer.model"), template=None)

    rendered = chat.render([user("This is a test sentence."), {"role": "assistant", "content": "Hello world"}])

    header = [128000, 128006, 882, 128007, 271]
    assert rendered.ids == [
        *header, 2028, 374, 264, 1296, 11914, 13, 128009,
        *(128006, 78191, 128007, 271, 9906, 1917, 128009),
    ]  # fmt: skip
    assert rendered.mask == [False] * 16 + [True] * 3
    assert set(chat.stop_ids) == {128001, 128008, 128009}


def test_a_date_that_llama_cpp_gives_unasked_is_not_told(chat):
    own = JinjaFormat(chat.tokenizer, chat.template)
    messages = [{"role": "user", "content": "Hello"}]
    assert own.render(messages, date_string=DATE).ids == chat.render(messages, date_string=DATE).ids
    assert own.render(messages, date_string=DATE, datetime="Sep 21 2024").ids == chat.render(messages).ids
