"""One engine for many threads: whoever waits for tokens runs a step for all."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from camelid.base.errors import TokenizerError
from camelid.base.fair_lock import FairLock
from camelid.llm.reply import Generation, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from camelid.engine.engine import Engine
    from camelid.engine.params import SamplingParams
    from camelid.llm.reply import Chunk
    from camelid.model.image_memory import PromptImage
    from camelid.tokenizer import StreamDecoder


@dataclass(frozen=True)
class Prepared:
    """A prompt as the engine takes it."""

    ids: list[int]
    params: SamplingParams
    continuing: bool
    """Whether the reply goes on with the prompt's text."""
    images: list[PromptImage]


class SharedEngine:
    """Turns prepared prompts into replies; what threads ask for at the same time runs in the same batches.

    Args:
        engine: gives the engine, which is made when it is first needed.
        decoder: makes what turns a reply's ids into text, given whether it continues the prompt's text.
    """

    def __init__(self, engine: Callable[[], Engine], decoder: Callable[[bool], StreamDecoder]) -> None:
        self._engine = engine
        self._decoder = decoder
        self._replies: dict[int, Reply] = {}
        self._forgotten: deque[int] = deque()
        """Requests that nobody waits for any more."""
        self.lock = FairLock()
        """Held by the thread that uses the engine."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for a reply."""
        return not self._replies

    def run(self, batch: Sequence[Prepared]) -> list[Generation]:
        """The replies to all, when they are done."""
        replies: dict[int, Reply] = {}
        try:
            for prepared in batch:
                request, reply = self._start(prepared)
                replies[request] = reply
            while any(reply.finish_reason is None for reply in replies.values()):
                self._step()
            for reply in replies.values():
                reply.raise_error()
        finally:
            for request in replies:
                self._forget(request)
        return [
            Generation(
                reply.text,
                reply.token_ids,
                reply.finish_reason or "stop",
                len(prepared.ids),
                reply.logprobs,
                reply.prompt_logprobs,
            )
            for reply, prepared in zip(replies.values(), batch, strict=True)
        ]

    def stream(self, prepared: Prepared) -> Generator[Chunk]:
        """A reply, piece by piece; closing the iterator cancels the rest."""
        request, reply = self._start(prepared)
        try:
            finished = False
            while not finished:
                self._step(reply)
                while reply.chunks:
                    chunk = reply.chunks.popleft()
                    finished = chunk.finish_reason is not None
                    yield chunk
            reply.raise_error()
        finally:
            self._forget(request)

    async def astream(self, prepared: Prepared) -> AsyncGenerator[Chunk]:
        """`stream` with steps on a thread. A task that is cancelled, or a closed iterator, cancels the rest."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, prepared))
        try:
            request, reply = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._forget_started)
            raise
        try:
            finished = False
            while not finished:
                await asyncio.to_thread(self._step, reply)
                while reply.chunks:
                    chunk = reply.chunks.popleft()
                    finished = chunk.finish_reason is not None
                    yield chunk
            reply.raise_error()
        finally:
            self._forget(request)

    def _start(self, prepared: Prepared) -> tuple[int, Reply]:
        reply = Reply(self._decoder(prepared.continuing), prepared.params)
        with self.lock:
            request = self._engine().add(prepared.ids, prepared.params, images=prepared.images)
            self._replies[request] = reply
        return request, reply

    def _step(self, reply: Reply | None = None) -> None:
        """One step of the engine, unless this reply has something already; every open one gets its tokens."""
        engine = self._engine()
        with self.lock:
            if reply is not None and (reply.chunks or reply.finish_reason):
                return
            for output in engine.step():
                reply = self._replies.get(output.request_id)
                if reply is None or reply.finish_reason:
                    continue
                reply.prompt_logprobs += output.prompt_logprobs
                try:
                    reply.error = output.error
                    is_over = reply.extend(output.token_ids, output.finish_reason, output.logprobs)
                except TokenizerError as error:  # a model may have ids that its tokenizer lacks
                    reply.fail(error)
                    is_over = True
                if is_over and not output.finish_reason:
                    engine.cancel(output.request_id)
            self._cancel_forgotten()

    def _forget_started(self, starting: asyncio.Future[tuple[int, Reply]]) -> None:
        """Forget a request whose task was cancelled while it was being queued."""
        if not starting.cancelled() and starting.exception() is None:
            self._forget(starting.result()[0])

    def _forget(self, request: int) -> None:
        self._forgotten.append(request)
        if not self.lock.is_mine:  # it is, if the garbage collector closes a stream in the middle of a step
            with self.lock:
                self._cancel_forgotten()

    def _cancel_forgotten(self) -> None:
        while self._forgotten:
            request = self._forgotten.popleft()
            if self._replies.pop(request).finish_reason is None:
                self._engine().cancel(request)
