"""One at a time: who uses an engine while it is in use gets an error, and who is interrupted leaves it whole."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from weakref import ref

from camelid.base.errors import CamelidError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

NOW = "now"


class Turns:
    """The turns to use an engine, `with turns.take(): …`; there is one at a time.

    Ctrl-C may come between any two lines of the bookkeeping, and memory may run out in any. Whoever has the next turn
    after such an end has the books written anew first. A turn that was interrupted on its way in or out is over too: it
    lasts no longer than the `with` that holds on to it.

    Args:
        repair: writes the books anew; does no harm when it is done twice, or begun and done again.
    """

    def __init__(self, repair: Callable[[], None]) -> None:
        self._repair = repair
        self._present: dict[str, ref[Turn]] = {}
        """The turn that has begun, under NOW. A dict's `setdefault` takes it in one piece, which neither another thread
        nor Ctrl-C can come into, and a turn that nobody holds any more clears its place itself."""
        self._is_whole = True
        self._later: deque[Callable[[], None]] = deque()

    def take(self) -> Turn:
        """A turn, which begins with its `with`.

        Raises:
            EngineError: on entering, somebody has it: another thread, or the caller itself in the middle of a step.
        """
        return Turn(self)

    def when_free(self, action: Callable[[], None]) -> None:
        """Do something that may be done twice, now or as soon as nobody has the turn: the garbage collector closes
        streams at any moment."""
        self._later.append(action)
        self._catch_up()

    def begin(self, turn: Turn) -> bool:
        """Whether the turn has begun; False if somebody else has it."""
        mine = ref(turn, self._clear)
        if self._present.setdefault(NOW, mine) is not mine:
            return False
        if not self._is_whole:
            self._repair()
        self._is_whole = False
        return True

    def end(self, *, is_whole: bool) -> None:
        """The turn that has begun is over.

        Args:
            is_whole: the books are in order.
        """
        self._is_whole = is_whole
        self._present.clear()
        self._catch_up()

    def _catch_up(self) -> None:
        while self._later and self.begin(turn := self.take()):
            while self._later:
                self._later[0]()
                self._later.popleft()
            self._is_whole = True
            self._present.clear()
            del turn

    def _clear(self, gone: ref[Turn]) -> None:
        if self._present.get(NOW) is gone:
            self._present.clear()


class Turn:
    """One turn; see `Turns`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        if not self._turns.begin(self):
            raise EngineError(
                "the engine is in use", hint="one thread at a time may use an Engine; an LLM is shared by many"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is refused is refused before anything has changed.
        self._turns.end(is_whole=kind is None or issubclass(kind, CamelidError))
