"""Progress of long work: a live bar on a terminal, plain lines in a log, both on stderr.

Work that is part of something larger, which has the terminal, gives it one line instead: `progress_shown_by`.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from camelid.base.files import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES = 5.0

_shown_by: ContextVar[Callable[[str], None] | None] = ContextVar("shown_by", default=None)


class Progress:
    """One task's progress; `advance` is called as work gets done."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0
        self._started = self._printed = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count `amount` more units as done."""
        self.done += amount
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state as one line: amount, share, rate and time left."""
        seconds = max(time.monotonic() - self._started, 1e-6)
        rate = self.done / seconds
        text = f"{self.title}: {self._count(self.done)}"
        if self.total:
            text += f" of {self._count(self.total)} ({100 * self.done / self.total:.0f}%)"
        text += f", {self._count(rate)}/s"
        if self.total and rate > 0 and self.done < self.total:
            text += f", {(self.total - self.done) / rate:.0f} s left"
        return text

    def _count(self, amount: float) -> str:
        return format_bytes(amount) if self.unit == "B" else f"{amount:.0f} {self.unit}"


class _Bar(Progress):
    def __init__(self, title: str, total: int | None, unit: str) -> None:
        super().__init__(title, total, unit)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(), TextColumn(unit))
        self.live = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            *amount,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self.live.add_task(title, total=total)

    def advance(self, amount: int) -> None:
        self.done += amount
        self.live.advance(self._task, amount)


class _Reported(Progress):
    def __init__(self, title: str, total: int | None, unit: str, show: Callable[[str], None]) -> None:
        super().__init__(title, total, unit)
        self._show = show

    def advance(self, amount: int) -> None:
        self.done += amount
        self._show(self.line())


@contextmanager
def progress_shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Within the block all progress goes to `show`, as one line that takes the place of the one before."""
    token = _shown_by.set(show)
    try:
        yield
    finally:
        _shown_by.reset(token)


def progress_view() -> Callable[[str], None] | None:
    """What shows progress in place of the terminal here; None: the terminal, or the log, is free."""
    return _shown_by.get()


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "B") -> Iterator[Progress]:
    """Show the progress of the work inside the `with` block.

    Args:
        title: what is being done, as "reading model.gguf".
        total: how many units there are, if known.
        unit: "B" for bytes, or the plural name of what is counted.
    """
    if show := progress_view():
        yield _Reported(title, total, unit, show)
        return
    if not sys.stderr.isatty():
        yield Progress(title, total, unit)
        return
    bar = _Bar(title, total, unit)
    with bar.live:
        yield bar
