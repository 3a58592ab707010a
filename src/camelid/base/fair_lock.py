"""A lock that a thread which takes it again and again cannot keep from the others."""

from __future__ import annotations

from threading import Lock, get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class FairLock:
    """A lock for loops: who waits gets it before the thread that just released it.

    A `threading.Lock` that is released and taken again at once hardly ever changes hands in CPython.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._first_in_line = Lock()
        self._owner: int | None = None

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self._owner == get_ident()

    def __enter__(self) -> None:
        with self._first_in_line:
            self._lock.acquire()
        self._owner = get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner = None
        self._lock.release()
