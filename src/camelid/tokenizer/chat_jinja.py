"""A folder's own chat template as a chat format."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from camelid.base.errors import ChatFormatError, did_you_mean
from camelid.tokenizer.chat_format import ChatFormat, Rendered, image_sources
from camelid.tokenizer.chat_images import IMAGE_TOKEN
from camelid.tokenizer.chat_messages import check_messages, check_tools, plain_json
from camelid.tokenizer.chat_spans import (
    ControlTokens,
    Markers,
    Span,
    encode_spans,
    loss_mask,
    parse_marked,
    spans_text,
    walk_strings,
)
from camelid.tokenizer.template import Template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from camelid.tokenizer.base import Tokenizer
    from camelid.tokenizer.chat_messages import Json

RESERVED = frozenset(
    {
        *("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"),
        *("chat_template", "tokenize", "continue_final_message", "return_assistant_tokens_mask"),
        *("raise_exception", "strftime_now", "range", "dict", "namespace", "cycler", "joiner", "lipsum"),
        *("self", "loop", "caller", "varargs", "kwargs"),
    }
)
"""Names that template variables may not take: what the renderer sets, transformers' switches, and jinja2's own."""

_GENERATION_HINT = "put {% generation %} ... {% endgeneration %} around the assistant's part of the template"


class JinjaFormat(ChatFormat):
    """Whatever the template that came with a model says.

    Texts of the conversation, tools and variables never become control tokens: those they spell are broken up before
    the template sees them, and mended afterwards as text. A template that makes a control token out of text which does
    not look like one, by gluing (`'<|' + name + '|>'`) or by cutting (`content | replace('x', '')`), means it and gets
    it.

    The loss mask comes from the template's `{% generation %}` blocks. Without any, it is found by rendering the
    conversation up to each of the assistant's messages, and fails where a template writes earlier messages differently
    once later ones follow.

    Args:
        tokenizer: the model's tokenizer.
        template: the Jinja text.
        seconds: how long one rendering may take.
    """

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, template: str, *, seconds: float | None = None) -> None:
        super().__init__(tokenizer)
        self.template = template
        self._template = Template(template) if seconds is None else Template(template, seconds=seconds)
        self._control = ControlTokens(tokenizer.special.ids)
        self._has_generation = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", template) is not None

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-sequence token, and the control token that follows an assistant's text in this template."""
        stops = [] if self.tokenizer.special.eos is None else [self.tokenizer.special.eos]
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        rendering = self._prepare(probe, None, {})
        try:
            spans = self._parse(rendering, self._text(rendering, len(probe), add_generation_prompt=False))
        except ChatFormatError:  # a template that wants other conversations, about which nothing is known
            return tuple(stops)
        answers = [index for index, span in enumerate(spans) if span.token is None and "answer" in span.text]
        following = [span.token for span in spans[answers[-1] :] if span.token is not None] if answers else []
        return tuple(dict.fromkeys(stops + following[:1]))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> Rendered:
        """Token ids and loss mask of a conversation; see `ChatFormat.render`.

        Raises:
            ChatFormatError: the conversation is malformed, a variable is reserved or not read by the template, or the
                template is broken, refuses the conversation, or takes more time or memory than it may.
        """
        rendering = self._prepare(messages, tools, variables)
        text = self._text(rendering, len(rendering.messages), add_generation_prompt=add_generation_prompt)
        spans = self._parse(rendering, text)
        ids = None if rendering.markers.broken in text else self._ids_at_once(spans)
        if ids is None:
            ids = [token_id for stretch in encode_spans(self.tokenizer, spans) for token_id in stretch.ids]
        places = sum(span.token is not None and span.text == IMAGE_TOKEN for span in spans)
        if places != len(rendering.images):
            raise ChatFormatError(
                f"the conversation shows {len(rendering.images)} images and its template has a place for {places}",
                hint="talk to a model that reads images" if not places else None,
            )
        return Rendered(ids, lambda: self._mask(rendering, text, ids), rendering.images)

    def _ids_at_once(self, spans: Sequence[Span]) -> list[int] | None:
        """Ids as transformers makes them, since a tokenizer may treat text beside control tokens in its own way.

        None if that reads control tokens where the template wrote none: single characters, normalised spellings.
        """
        ids = self.tokenizer.encode(spans_text(spans), allow_special=True)
        control = self.tokenizer.special.control_ids - {self.tokenizer.special.unk}
        written = [span.token for span in spans if span.token in control]
        return ids if [token_id for token_id in ids if token_id in control] == written else None

    def _prepare(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> _Rendering:
        for name in variables.keys() & RESERVED:
            raise ChatFormatError(f"the template variable {name!r} is reserved", hint="give it another name")
        known = self._template.variables() - RESERVED if variables else frozenset()
        for name in variables.keys() - known:
            raise ChatFormatError(f"the chat template reads no variable {name!r}", hint=did_you_mean(name, known))
        checked = check_messages(messages)
        conversation = [message.data for message in checked]
        definitions = check_tools(tools) or None
        others = plain_json(variables, "template variables")
        markers = Markers.absent_from([self.template, *walk_strings([conversation, definitions, others])])
        broken = [{**self._break_up(message, markers), "role": message["role"]} for message in conversation]
        special = self.tokenizer.special
        spellings = {token: spelling for spelling, token in special.ids.items()}
        named = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad, "unk_token": special.unk}
        fixed = {name: spellings[token] for name, token in named.items() if token in spellings}
        tools_and_others = {"tools": definitions, **others}
        variables_and_fixed = {**self._break_up(tools_and_others, markers), **fixed}
        return _Rendering(broken, variables_and_fixed, markers, datetime.now(), image_sources(checked))

    def _break_up(self, value: Any, markers: Markers) -> Any:
        if isinstance(value, str):
            return self._control.break_up(value, markers.broken)
        if isinstance(value, dict):
            return {self._break_up(key, markers): self._break_up(item, markers) for key, item in value.items()}
        if isinstance(value, list):
            return [self._break_up(item, markers) for item in value]
        return value

    def _text(self, rendering: _Rendering, num_messages: int, *, add_generation_prompt: bool) -> str:
        """What the template makes of the first messages, markers included."""
        variables = {
            **rendering.variables,
            "messages": rendering.messages[:num_messages],
            "add_generation_prompt": add_generation_prompt,
        }
        return self._template.render(variables, markers=rendering.markers, now=rendering.now)

    def _parse(self, rendering: _Rendering, text: str) -> list[Span]:
        return parse_marked(text, rendering.markers, self._control)

    def _mask(self, rendering: _Rendering, text: str, ids: list[int]) -> list[bool]:
        if not self._has_generation:
            text = self._mark_replies(rendering, text)
        stretches = encode_spans(self.tokenizer, self._parse(rendering, text))
        if [token_id for stretch in stretches for token_id in stretch.ids] != ids:
            raise ChatFormatError(
                "the loss mask cannot be laid over the tokens: the tokenizer changes text beside control tokens"
            )
        return loss_mask(self.tokenizer, stretches)

    def _mark_replies(self, rendering: _Rendering, text: str) -> str:
        """The text with the markers that `{% generation %}` blocks would have put around the assistant's parts."""
        parts, position = [], 0
        for index, message in enumerate(rendering.messages):
            if message["role"] != "assistant":
                continue
            where = f"messages[{index}]"
            try:
                start = self._text(rendering, index, add_generation_prompt=True)
                end = self._text(rendering, index + 1, add_generation_prompt=False)
            except ChatFormatError as error:
                what = f"the loss mask cannot be found, since it takes the beginning of the conversation alone: {error}"
                raise ChatFormatError(what, where=where, hint=_GENERATION_HINT) from error
            if not (text.startswith(end) and end.startswith(start) and len(start) >= position):
                what = "the loss mask cannot be found: the template writes messages differently once later ones follow"
                raise ChatFormatError(what, where=where, hint=_GENERATION_HINT)
            reply = self._until_stop(rendering, end[len(start) :])
            parts += [text[position : len(start)], rendering.markers.learn, reply, rendering.markers.given]
            position = len(start) + len(reply)
        return "".join([*parts, text[position:]])

    def _until_stop(self, rendering: _Rendering, reply: str) -> str:
        """A reply up to the last token that ends a turn: what templates write after it, the assistant does not."""
        end = position = 0
        for span in self._control.split(reply):
            position += len(span.text)
            if span.token in self.stop_ids:
                end = position
        return reply[:end] if end else reply


class _Rendering(NamedTuple):
    """One conversation, ready for the template: texts broken up, time fixed."""

    messages: list[Json]
    variables: Json
    markers: Markers
    now: datetime
    images: tuple[object | None, ...]
