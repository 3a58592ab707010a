"""A conversation that fits the context: what `camelid chat` keeps, drops and saves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from camelid.base.errors import ContextLengthError, NotFoundError, did_you_mean
from camelid.base.files import write_text

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from camelid.llm import LLM, Generation

SHARE_FOR_REPLY = 4
"""At least 1/4 of the context stays free for a reply: older turns are dropped to keep it so."""


class Conversation:
    """Messages of one conversation and the settings of its replies.

    Policy when the context is full: the oldest question with its answers is dropped, again and again, until the rest
    leaves room for a reply; the system message always stays. `num_dropped` counts the dropped turns.

    Args:
        llm: the model that answers.
        system: the system message; None leaves it to the model's chat template.
        sampling: fields of `SamplingParams`.
    """

    def __init__(self, llm: LLM, *, system: str | None = None, sampling: Mapping[str, Any] | None = None) -> None:
        self.llm = llm
        self.sampling = dict(sampling or {})
        self.system = system
        self.turns: list[dict[str, Any]] = []
        self.shown: list[str] = []
        """Pictures that the next message shows, as data URLs."""
        self.num_dropped = 0
        self.num_reply_tokens = 0
        """Of the last reply."""
        self.finish_reason: str | None = None
        """Why the last reply ended; None if it was stopped."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's message schema."""
        return [*self._system_messages, *self.turns]

    @property
    def _system_messages(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def clear(self) -> None:
        """Forget every turn and picture; the system message stays."""
        self.turns = []
        self.shown = []

    def show(self, picture: Path) -> None:
        """Have the next message show a picture.

        Raises:
            CamelidError: the model reads text only, or the file is no picture that can be opened.
        """
        from camelid.model.image_files import data_url

        assert self.llm.image_reader
        self.shown.append(data_url(picture))

    def ask(self, text: str) -> Generator[str]:
        """Add the user's message and stream the reply; what was said of it is kept even if the caller stops early.

        Pictures to show stand before the text.

        Raises:
            ContextLengthError: this message alone does not fit the context; it is not kept.
        """
        self._add(text)
        return self._reply()

    def replies(self, text: str, n: int) -> list[Generation]:
        """Add the user's message and give several replies to it; none of them becomes part of the conversation.

        Raises:
            ContextLengthError: as for `ask`.
        """
        self._add(text)
        return self.llm.generate(self.messages, n=n, **self.sampling)

    def use_adapter(self, name: str | None) -> None:
        """Let an adapter answer from now on, or none.

        Raises:
            NotFoundError: there is no such adapter.
        """
        known = self.llm.engine.adapter_names
        if name is not None and name not in known:
            raise NotFoundError(f"there is no adapter named '{name}'", hint=did_you_mean(name, known))
        self.sampling["adapter"] = name

    def _add(self, text: str) -> None:
        content: str | list[dict[str, Any]] = text
        if self.shown:
            pictures = [{"type": "image_url", "image_url": {"url": url}} for url in self.shown]
            content = [*pictures, {"type": "text", "text": text}]
        turns = self._fitting([*self.turns, {"role": "user", "content": content}])
        self.shown = []
        self.num_dropped += _num_questions(self.turns) + 1 - _num_questions(turns)
        self.turns = turns

    def _reply(self) -> Generator[str]:
        said = ""
        self.num_reply_tokens = 0
        self.finish_reason = None
        chunks = self.llm.stream(self.messages, **self.sampling)
        try:
            for chunk in chunks:
                said += chunk.text
                self.num_reply_tokens += len(chunk.token_ids)
                self.finish_reason = chunk.finish_reason
                yield chunk.text
        finally:
            chunks.close()
            self.turns.append({"role": "assistant", "content": said.strip()})

    def _fitting(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The latest of the turns that leave room for a reply."""
        limit = self.llm.context_length
        while (num_tokens := self._num_tokens(turns)) > limit - limit // SHARE_FOR_REPLY:
            next_question = next((i for i, turn in enumerate(turns) if i > 0 and turn["role"] == "user"), None)
            if next_question is not None:
                turns = turns[next_question:]
            elif num_tokens < limit:
                break
            else:
                raise ContextLengthError(
                    f"the message is too long: {num_tokens} tokens with its surroundings, the context holds {limit}",
                    hint="shorten it, or split it into parts",
                )
        return turns

    def _num_tokens(self, turns: list[dict[str, Any]]) -> int:
        return len(self.llm.encode_prompt([*self._system_messages, *turns]))

    def save(self, path: Path) -> None:
        """Write the messages as JSON, atomically."""
        write_text(path, json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n")


def _num_questions(turns: list[dict[str, Any]]) -> int:
    return sum(turn["role"] == "user" for turn in turns)
