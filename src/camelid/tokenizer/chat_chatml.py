"""ChatML: the format of many models that speak through <|im_start|> and <|im_end|>.

Contents are written as they are, without stripping. There is no default system prompt and no way to write tool calls:
models that have either say so in a template of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat_format import NativeFormat
from camelid.tokenizer.chat_spans import Span

if TYPE_CHECKING:
    from camelid.tokenizer.chat_messages import Json, Message


class ChatMLFormat(NativeFormat):
    """`<|im_start|>{role}\\n{content}<|im_end|>\\n` for each message."""

    name = "chatml"
    marks: ClassVar[frozenset[str]] = frozenset({"<|im_start|>", "<|im_end|>"})
    template = """\
{%- if tools %}{{- raise_exception('the chatml format has no tools') }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.tool_calls %}
        {{- raise_exception('the chatml format has no tools') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """<|im_end|>."""
        return (self.tokenizer.special.ids["<|im_end|>"],)

    def spans(
        self, messages: list[Message], tools: list[Json], add_generation_prompt: bool, **variables: Any
    ) -> list[Span]:
        """The conversation as control tokens and text."""
        if tools:
            raise ChatFormatError("the chatml format has no tools", where="tools")
        spans = []
        for index, message in enumerate(messages):
            if message.role == "tool" or message.tool_calls:
                raise ChatFormatError("the chatml format has no tools", where=f"messages[{index}]")
            learned = message.role == "assistant"
            spans += [
                self.control("<|im_start|>"),
                Span(f"{message.role}\n"),
                Span(message.content, learned=learned),
                self.control("<|im_end|>", learned=learned),
                Span("\n"),
            ]
        if add_generation_prompt:
            spans += [self.control("<|im_start|>"), Span("assistant\n")]
        return spans
