"""The chat format of Llama 3, 3.1, 3.2 and 3.3, with 3.1's JSON tool calls and 3.2's images.

Sources: ChatFormat of the Llama 3 release (llama/tokenizer.py), and of the llama-models package (models/llama3). They
differ in one place: the first strips contents, the second does not. Here contents are stripped, because then the
blank line of the header and the content never share a token, so that encoding them apart (Meta) and together
(transformers) gives the same ids.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat_format import NativeFormat
from camelid.tokenizer.chat_images import IMAGE_TOKEN, Image
from camelid.tokenizer.chat_spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.tokenizer.chat_messages import Json, Message, ToolCall

ENVIRONMENT = "Environment: ipython"
"""First line of a system prompt that lets the model call tools; calls then start <|python_tag|> and end <|eom_id|>."""
CODE_INTERPRETER = "code_interpreter"


class Llama3Format(NativeFormat):
    """`<|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>` for each message.

    Variables:
        date_string: today's date as Meta writes it, "21 September 2024"; adds the two date lines to the system prompt.
        builtin_tools: names of tools that the model knows by itself ("brave_search", "wolfram_alpha",
            "code_interpreter"); calls of these are written as `name.call(query="...")`, or as the code itself.

    With tools, the system prompt starts with `Environment: ipython`, the definitions stand in a user's message of their
    own, and an assistant's message makes at most one call.
    """

    name = "llama3"
    shows_images = True
    variables: ClassVar[frozenset[str]] = frozenset({"date_string", "builtin_tools"})
    marks: ClassVar[frozenset[str]] = frozenset(
        {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}
    )
    template = """\
{#- llama.cpp gives every template today's datetime and date_string, unasked #}
{%- set date_string = none if datetime else date_string %}
{%- set builtin = builtin_tools or [] %}
{%- set has_system = messages[0].role == 'system' %}
{%- set system = (messages[0].content if has_system else '').strip() %}
{%- set ipython = tools or builtin or system.startswith('Environment: ipython') %}
{%- set search = builtin | reject('equalto', 'code_interpreter') | list %}
{%- set preamble %}
    {%- if tools or builtin %}
        {{- 'Environment: ipython\\n' }}
        {%- if search %}{{- 'Tools: ' + search | join(', ') + '\\n' }}{%- elif date_string %}{{- '\\n' }}{%- endif %}
    {%- endif %}
    {%- if date_string %}{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n' }}{%- endif %}
{%- endset %}
{{- '<|begin_of_text|>' }}
{%- if has_system or preamble %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
    {{- (preamble + ('\\n' if preamble else '') + system).strip() + '<|eot_id|>' }}
{%- endif %}
{%- if tools %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {{- "Answer the user's question by making use of the following functions if needed.\\n" }}
    {{- 'If none of the function can be used, please say so.\\nHere is a list of functions in JSON format:\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {{- 'Return function calls in JSON format.<|eot_id|>' }}
{%- endif %}
{%- for message in messages[1 if has_system else 0:] %}
    {{- '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'user' and message.content is not string %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|image|>' }}
            {%- else %}
                {%- set text = part.text.lstrip() if loop.first else part.text %}
                {{- text.rstrip() if loop.last else text }}
            {%- endif %}
        {%- endfor %}
        {{- '<|eot_id|>' }}
    {%- elif message.role != 'assistant' %}
        {{- message.content.strip() + '<|eot_id|>' }}
    {%- else %}
        {%- generation %}
        {{- (message.content or '').strip() }}
        {%- if message.tool_calls %}
            {%- if message.tool_calls | length != 1 %}
                {{- raise_exception('a message makes one tool call at most') }}
            {%- endif %}
            {%- set call = message.tool_calls[0].function %}
            {%- set key = 'code' if call.name == 'code_interpreter' else 'query' %}
            {%- set text = call.arguments[key] %}
            {%- if ipython %}{{- '<|python_tag|>' }}{%- endif %}
            {%- if call.name not in builtin %}
                {{- {'type': 'function', 'name': call.name, 'parameters': call.arguments} | tojson }}
            {%- elif call.arguments | length != 1 or text is not string %}
                {{- raise_exception('a call of ' + call.name + ' has one text, ' + key) }}
            {%- elif key == 'code' %}
                {{- text }}
            {%- elif '"' in text %}
                {{- raise_exception('a query of ' + call.name + ' cannot hold a double quote') }}
            {%- else %}
                {{- call.name + '.call(query="' + text + '")' }}
            {%- endif %}
        {%- endif %}
        {{- '<|eom_id|>' if message.tool_calls and ipython else '<|eot_id|>' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """<|eot_id|>, <|eom_id|> where the vocabulary has it (since 3.1), and <|end_of_text|>."""
        ids = self.tokenizer.special.ids
        return tuple(ids[stop] for stop in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>") if stop in ids)

    def spans(
        self,
        messages: list[Message],
        tools: list[Json],
        add_generation_prompt: bool,
        *,
        date_string: str | None = None,
        builtin_tools: Sequence[str] | None = None,
        **variables: Any,
    ) -> list[Span]:
        """The conversation as control tokens and text."""
        builtin = _check_variables(date_string, builtin_tools)
        has_system = messages[0].role == "system"
        system = messages[0].content.strip() if has_system else ""
        preamble = _preamble(bool(tools or builtin), builtin, date_string)
        spans = [self.control("<|begin_of_text|>")]
        if has_system or preamble:
            text = f"{preamble}\n{system}" if preamble else system
            spans += [*self._header("system"), Span(text.strip()), self.control("<|eot_id|>")]
        if tools:
            spans += [*self._header("user"), Span(_instructions(tools)), self.control("<|eot_id|>")]
        ipython = bool(tools or builtin) or system.startswith(ENVIRONMENT)
        for index, message in enumerate(messages[has_system:], start=has_system):
            spans += self._header("ipython" if message.role == "tool" else message.role)
            if message.role == "assistant":
                spans += self._reply(message, ipython, builtin, f"messages[{index}]")
            else:
                spans += [*self._content(message), self.control("<|eot_id|>")]
        if add_generation_prompt:
            spans += self._header("assistant")
        return spans

    def _header(self, role: str) -> list[Span]:
        return [self.control("<|start_header_id|>"), Span(role), self.control("<|end_header_id|>"), Span("\n\n")]

    def _content(self, message: Message) -> list[Span]:
        """Texts and images; white space at the ends of the whole is dropped."""
        spans, last = [], len(message.parts) - 1
        for index, part in enumerate(message.parts):
            if isinstance(part, Image):
                spans.append(self.control(IMAGE_TOKEN))
                continue
            text = part.lstrip() if index == 0 else part
            spans.append(Span(text.rstrip() if index == last else text))
        return spans

    def _reply(self, message: Message, ipython: bool, builtin: Sequence[str], where: str) -> list[Span]:
        content = Span(message.content.strip(), learned=True)
        if not message.tool_calls:
            return [content, self.control("<|eot_id|>", learned=True)]
        if len(message.tool_calls) > 1:
            raise ChatFormatError("a message makes one tool call at most in the llama3 format", where=where)
        call = Span(_call_text(message.tool_calls[0], builtin, where), learned=True)
        if not ipython:
            return [content, call, self.control("<|eot_id|>", learned=True)]
        return [content, self.control("<|python_tag|>", learned=True), call, self.control("<|eom_id|>", learned=True)]


def _check_variables(date_string: object, builtin_tools: object) -> list[str]:
    if not isinstance(date_string, str | None):
        raise ChatFormatError("date_string is not a text", hint='Meta writes "21 September 2024"')
    names = [] if builtin_tools is None else builtin_tools
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ChatFormatError("builtin_tools is not a list of names", hint='such as ["brave_search"]')
    return list(names)


def _preamble(ipython: bool, builtin: Sequence[str], date_string: str | None) -> str:
    """The lines before the system's own text, each with its newline; a blank one stands for an absent list of tools."""
    lines = []
    if ipython:
        lines.append(ENVIRONMENT)
        search = [name for name in builtin if name != CODE_INTERPRETER]
        if search:
            lines.append("Tools: " + ", ".join(search))
        elif date_string:
            lines.append("")
    if date_string:
        lines += ["Cutting Knowledge Date: December 2023", f"Today Date: {date_string}"]
    return "".join(f"{line}\n" for line in lines)


def _instructions(tools: list[Json]) -> str:
    definitions = "".join(json.dumps(tool, ensure_ascii=False, indent=4) + "\n\n" for tool in tools)
    return (
        "Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\n"
        f"Here is a list of functions in JSON format:\n{definitions}"
        "Return function calls in JSON format."
    )


def _call_text(call: ToolCall, builtin: Sequence[str], where: str) -> str:
    if call.name not in builtin:
        parts = {"type": "function", "name": call.name, "parameters": call.arguments}
        return json.dumps(parts, ensure_ascii=False)
    key = "code" if call.name == CODE_INTERPRETER else "query"
    text = call.arguments.get(key)
    if list(call.arguments) != [key] or not isinstance(text, str):
        raise ChatFormatError(f"a call of {call.name} has one text, {key}", where=where)
    if call.name == CODE_INTERPRETER:
        return text
    if '"' in text:
        raise ChatFormatError(f"a query of {call.name} cannot hold a double quote", where=where)
    return f'{call.name}.call(query="{text}")'
