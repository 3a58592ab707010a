"""What a chat format is: messages in, token ids and the loss mask out; `camelid.tokenizer.chat` says which to take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from camelid.base.errors import ChatFormatError, did_you_mean
from camelid.tokenizer.chat_messages import check_messages, check_tools
from camelid.tokenizer.chat_spans import Span, encode_spans, loss_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from camelid.tokenizer.base import Tokenizer
    from camelid.tokenizer.chat_messages import Json, Message


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it."""

    ids: list[int]
    make_mask: Callable[[], list[bool]] = field(repr=False, compare=False)
    images: tuple[object | None, ...] = ()
    """What shows the images that the conversation's image tokens stand for, in order and unopened."""

    @cached_property
    def mask(self) -> list[bool]:
        """For each id, whether the loss is taken there: the assistant itself produces it, end tokens included.

        It is worked out when it is first asked for, so that serving neither pays for it nor fails on it.

        Raises:
            ChatFormatError: a folder's template or its tokenizer does not let the assistant's part be found.
        """
        mask = self.make_mask()
        assert len(mask) == len(self.ids)
        return mask


class ChatFormat(ABC):
    """How one family of models writes a conversation.

    Identifiers (`name`, `tool_call_id`, a call's `id`) are not written by the built-in formats; a folder's own template
    may write them.
    """

    name: str
    template: str
    """The Jinja text that renders the same bytes; it goes into exported folders."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn."""

    @abstractmethod
    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> Rendered:
        """Token ids and loss mask of a conversation.

        Args:
            messages: OpenAI's message schema; see `camelid.tokenizer.chat_messages`.
            tools: definitions of the tools that the assistant may call.
            add_generation_prompt: end with the header of the assistant's turn, ready for its reply.
            variables: what else the format knows, `date_string` for one.

        Raises:
            ChatFormatError: the conversation is malformed, or the format cannot express it; `where` is the message.
        """


class NativeFormat(ChatFormat):
    """A format written in Python, for families whose folders may come without a template.

    Its `template` renders the same text, which a property test holds it to.
    """

    variables: ClassVar[frozenset[str]] = frozenset()
    """Names of the template variables that `spans` takes."""
    shows_images: ClassVar[bool] = False
    """Whether `spans` has a place for images."""
    marks: ClassVar[frozenset[str]] = frozenset()
    """Control tokens that only models of this format have; the format needs all of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        for mark in sorted(self.marks):
            self.control(mark)

    @abstractmethod
    def spans(
        self, messages: list[Message], tools: list[Json], add_generation_prompt: bool, **variables: Any
    ) -> list[Span]:
        """The conversation as control tokens and text.

        Raises:
            ChatFormatError: the format cannot express it.
        """

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> Rendered:
        """Token ids and loss mask of a conversation; see `ChatFormat.render`."""
        conversation = check_messages(messages)
        for index, message in enumerate(conversation):
            if message.unknown_fields:
                raise ChatFormatError(
                    f"the {self.name} format has no place for {message.unknown_fields[0]!r}", where=f"messages[{index}]"
                )
            if message.images and not self.shows_images:
                raise ChatFormatError(
                    f"the {self.name} format has no place for images",
                    where=f"messages[{index}]",
                    hint="talk to a model that reads them",
                )
        for name in variables.keys() - self.variables:
            raise ChatFormatError(
                f"the {self.name} format has no variable {name!r}", hint=did_you_mean(name, self.variables)
            )
        spans = self.spans(conversation, check_tools(tools), add_generation_prompt, **variables)
        stretches = encode_spans(self.tokenizer, spans)
        ids = [token_id for stretch in stretches for token_id in stretch.ids]
        return Rendered(ids, lambda: loss_mask(self.tokenizer, stretches), image_sources(conversation))

    def control(self, spelling: str, *, learned: bool = False) -> Span:
        """The span of a control token.

        Raises:
            ChatFormatError: the vocabulary does not have it.
        """
        token = self.tokenizer.special.ids.get(spelling)
        if token is None:
            raise ChatFormatError(
                f"the {self.name} format needs the control token {spelling}, which the vocabulary lacks"
            )
        return Span(spelling, token, learned)


def image_sources(conversation: Sequence[Message]) -> tuple[object | None, ...]:
    """What shows the images of a conversation, in order."""
    return tuple(image.source for message in conversation for image in message.images)
