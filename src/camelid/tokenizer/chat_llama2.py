"""The chat format of Llama 2 and of Code Llama - Instruct 7B, 13B and 34B.

Each pair of user and assistant is a sequence of its own, `<s>[INST] {user} [/INST] {assistant} </s>`, and the system
prompt is folded into the first user's text. The tags are ordinary text, not control tokens, so contents that spell one
are refused, as Meta's reference code does (llama/generation.py of the Llama 2 release).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camelid.base.errors import ChatFormatError
from camelid.tokenizer.chat_format import NativeFormat
from camelid.tokenizer.chat_spans import Span

if TYPE_CHECKING:
    from camelid.tokenizer.base import Tokenizer
    from camelid.tokenizer.chat_messages import Json, Message

TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


class Llama2Format(NativeFormat):
    """Strictly alternating user and assistant, an optional system prompt before them.

    The header of the assistant's turn is empty: a prompt ends with `[/INST]`, and the reply brings its own space.
    """

    name = "llama2"
    template = """\
{%- if tools %}{{- raise_exception('the llama2 format has no tools') }}{%- endif %}
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set turns = messages if system is none else messages[1:] %}
{%- for message in messages %}
    {%- for tag in ['[INST]', '[/INST]', '<<SYS>>', '<</SYS>>'] %}
        {%- if tag in (message.content or '') %}{{- raise_exception('the text spells the tag ' + tag) }}{%- endif %}
    {%- endfor %}
{%- endfor %}
{%- for message in turns %}
    {%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('user and assistant must take turns, and the user must begin') }}
    {%- elif message.tool_calls %}
        {{- raise_exception('the llama2 format has no tools') }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}{{- ' ' + message.content.strip() + ' ' + eos_token }}{%- endgeneration %}
    {%- elif loop.first and system is not none %}
        {%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content %}
        {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {%- else %}
        {{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' }}
    {%- endif %}
{%- else %}
    {{- raise_exception('user and assistant must take turns, and the user must begin') }}
{%- endfor %}
"""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        if tokenizer.special.bos is None or tokenizer.special.eos is None:
            raise ChatFormatError("the llama2 format needs begin and end tokens, which the vocabulary lacks")
        spellings = {token: spelling for spelling, token in tokenizer.special.ids.items()}
        self._bos = Span(spellings[tokenizer.special.bos], tokenizer.special.bos)
        self._eos = Span(spellings[tokenizer.special.eos], tokenizer.special.eos, learned=True)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-sequence token."""
        assert self._eos.token is not None
        return (self._eos.token,)

    def spans(
        self, messages: list[Message], tools: list[Json], add_generation_prompt: bool, **variables: Any
    ) -> list[Span]:
        """The conversation as control tokens and text."""
        _check(messages, tools, add_generation_prompt)
        spans = []
        system = messages[0].content if messages[0].role == "system" else None
        for index, message in enumerate(messages):
            if message.role == "user":
                text = message.content
                if index == 1 and system is not None:
                    text = f"<<SYS>>\n{system}\n<</SYS>>\n\n{text}"
                spans += [self._bos, Span(f"[INST] {text.strip()} [/INST]")]
            elif message.role == "assistant":
                spans += [Span(f" {message.content.strip()} ", learned=True), self._eos]
        return spans


def _check(messages: list[Message], tools: list[Json], add_generation_prompt: bool) -> None:
    if tools:
        raise ChatFormatError("the llama2 format has no tools", where="tools")
    first = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        for tag in TAGS:
            if tag in message.content:
                raise ChatFormatError(f"the text spells the tag {tag}", where=where)
        if message.tool_calls:
            raise ChatFormatError("the llama2 format has no tools", where=where)
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if index >= first and message.role != expected:
            raise ChatFormatError(
                f"user and assistant must take turns, and the user must begin; here the {message.role} speaks",
                where=where,
            )
    if len(messages) == first:
        raise ChatFormatError("there is a system prompt, but no user's message")
    if add_generation_prompt and messages[-1].role != "user":
        raise ChatFormatError(
            "the last message must be the user's for the assistant to reply", where=f"messages[{len(messages) - 1}]"
        )
