"""Replies as text: whole characters, without stop texts, in pieces or at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camelid.base.errors import CamelidError
    from camelid.engine.params import SamplingParams
    from camelid.engine.protocol import TokenLogprob
    from camelid.tokenizer import StreamDecoder


@dataclass(frozen=True)
class Generation:
    """A finished reply."""

    text: str
    """Without control tokens and without the stop text that ended it."""
    token_ids: list[int]
    """What the model produced, without the token that ended it."""
    finish_reason: str
    """"stop": the model or a stop text ended it; "length": `max_tokens` or the context did."""
    num_prompt_tokens: int
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each token, with `logprobs=True`."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each token of the prompt but the first, with `prompt_logprobs=…`."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply that is being produced; the pieces' texts joined are the reply's text."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    """None until the last piece."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, with `logprobs=True`."""


class Reply:
    """Turns one request's token ids into text and watches for stop texts.

    Text that may be the start of a stop text is held back until it is known not to be.
    """

    def __init__(self, decoder: StreamDecoder, params: SamplingParams) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.chunks: deque[Chunk] = deque()
        self.error: CamelidError | None = None
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self._stop = params.stop
        self._min_tokens = params.min_tokens
        self._decoder = decoder
        self._held = ""

    def extend(
        self, token_ids: Sequence[int], finish_reason: str | None, logprobs: Sequence[TokenLogprob] = ()
    ) -> bool:
        """Take new tokens; whether a stop text ended the reply."""
        stopped = False
        taken: list[int] = []
        for token_id in token_ids:
            taken.append(token_id)
            self._held += self._decoder.push(token_id)
            if stopped := self._cut_at_stop(len(taken)):
                break
        if finish_reason and not stopped:
            self._held += self._decoder.flush()
            stopped = self._cut_at_stop(len(taken))
        reason = "stop" if stopped else finish_reason
        keep = 0 if reason else self._unsure()
        text = self._held[: len(self._held) - keep]
        self._held = self._held[len(text) :]
        self.text += text
        self.token_ids += taken
        self.logprobs += logprobs[: len(taken)]
        self.chunks.append(Chunk(text, taken, reason, tuple(logprobs[: len(taken)])))
        self.finish_reason = reason  # last: another thread may be waiting for it
        return stopped

    def fail(self, error: CamelidError) -> None:
        """End with an error."""
        self.error = error
        self.chunks.append(Chunk("", [], "error"))
        self.finish_reason = "error"

    def raise_error(self) -> None:
        """Raise what ended the reply, if that was an error."""
        if self.error is not None:
            raise self.error

    def _cut_at_stop(self, num_new: int) -> bool:
        if len(self.token_ids) + num_new < self._min_tokens:
            return False
        found = [index for index in (self._held.find(stop) for stop in self._stop) if index >= 0]
        if not found:
            return False
        self._held = self._held[: min(found)]
        return True

    def _unsure(self) -> int:
        """How many of the last characters may be the start of a stop text."""
        longest = 0
        for stop in self._stop:
            for length in range(1, min(len(stop), len(self._held) + 1)):
                if self._held.endswith(stop[:length]):
                    longest = max(longest, length)
        return longest
