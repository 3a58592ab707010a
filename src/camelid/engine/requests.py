"""The unfinished requests, and what they were given until somebody takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.errors import EngineError
from camelid.engine.protocol import StepOutput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from camelid.engine.scheduler import Scheduler
    from camelid.engine.sequence import Sequence


class Requests:
    """Knows the unfinished requests by number, and delivers outputs: to an inbox of the request's own, or to `take`.

    What is unfinished is what stands here; the scheduler's books can be written anew from it.

    Args:
        scheduler: has each request while it is unfinished.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sequences: dict[int, Sequence] = {}
        self._undelivered: list[StepOutput] = []
        """Outputs for `step` to return."""

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def get(self, request_id: int) -> Sequence | None:
        """An unfinished request."""
        return self._sequences.get(request_id)

    @property
    def is_empty(self) -> bool:
        """Whether none is unfinished and nothing waits for `take`."""
        return not (self._sequences or self._undelivered)

    def add(self, sequence: Sequence) -> None:
        """Queue a request.

        Raises:
            EngineError: its number is in use.
        """
        if sequence.request_id in self._sequences:
            raise EngineError(f"the request id {sequence.request_id} is in use", hint="leave it out to get a fresh one")
        self._scheduler.add(sequence)
        self._sequences[sequence.request_id] = sequence

    def take(self) -> list[StepOutput]:
        """The outputs that go to no inbox, since the last call."""
        outputs, self._undelivered = self._undelivered, []
        return outputs

    def deliver(self, sequence: Sequence, output: StepOutput) -> None:
        """Hand an output to its request's inbox, or to the next `take`."""
        (self._undelivered if sequence.inbox is None else sequence.inbox).append(output)

    def finish(self, sequence: Sequence, output: StepOutput) -> None:
        """End a request with its last output."""
        self._remove(sequence)
        self.deliver(sequence, output)

    def fail(self, sequence: Sequence, what: str, hint: str) -> None:
        """End one request with an error; the others go on."""
        where = f"request {sequence.request_id}, after {len(sequence)} tokens"
        error = EngineError(what, where=where, hint=hint)
        self.finish(sequence, StepOutput(sequence.request_id, (), "error", error=error))

    def abandon(self, sequence: Sequence) -> None:
        """Leave nothing of a request behind, whether it is queued, finished or neither."""
        if self._sequences.get(sequence.request_id) is sequence:
            self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request_id]
        self._scheduler.remove(sequence)
