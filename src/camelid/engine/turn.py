"""One at a time: who uses an engine while it is in use gets an error in place of a broken cache."""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

from camelid.base.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Turn:
    """The turn to use an engine; there is one.

    Raises:
        EngineError: on entering, somebody has it: another thread, or the caller itself in the middle of a step.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._later: deque[Callable[[], None]] = deque()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise EngineError(
                "the engine is in use", hint="one thread at a time may use an Engine; an LLM is shared by many"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
        self._catch_up()

    def when_free(self, action: Callable[[], None]) -> None:
        """Do something that must not fail, now or as soon as nobody has the turn: the garbage collector closes
        streams at any moment."""
        self._later.append(action)
        self._catch_up()

    def _catch_up(self) -> None:
        while self._later and self._lock.acquire(blocking=False):
            try:
                while self._later:
                    self._later.popleft()()
            finally:
                self._lock.release()
