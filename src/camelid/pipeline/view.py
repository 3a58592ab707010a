"""What a pipeline shows while it runs: all stages at once on a terminal, one line for each change in a log.

On a terminal the running stage's own progress stands beneath the stages, and whatever else is printed scrolls above.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from camelid.base.progress import progress_shown_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Group

State = Literal["cached", "waiting", "running", "done", "stopped", "failed"]

REFRESHES_PER_SECOND = 4
_COLOURS: dict[State, str] = {
    "cached": "dim",
    "waiting": "dim",
    "running": "bold",
    "done": "green",
    "stopped": "yellow",
    "failed": "red",
}


class View(Protocol):
    """Gets told what becomes of each stage."""

    def set(self, name: str, state: State, note: str = "") -> None:
        """A stage comes to be in a state; the note is a path, or how long it took."""


class LogView:
    """One line on stderr for each change."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def set(self, name: str, state: State, note: str = "") -> None:
        """Print it, unless nothing happens."""
        if state == "waiting":
            return
        place = f"[{self._names.index(name) + 1}/{len(self._names)}]"
        print(f"{place} {name}: {state}" + (f", {note}" if note else ""), file=sys.stderr, flush=True)


class TerminalView:
    """A table of all stages that renews itself, with the running one's progress beneath."""

    def __init__(self, names: Sequence[str]) -> None:
        self._states: dict[str, tuple[State, str]] = dict.fromkeys(names, ("waiting", ""))
        self._progress = ""
        self._started = time.monotonic()

    def set(self, name: str, state: State, note: str = "") -> None:
        """Show it from now on."""
        self._states[name] = (state, note)
        self._progress = ""
        self._started = time.monotonic()

    def progress(self, line: str) -> None:
        """Show how far the running stage is."""
        self._progress = line

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from camelid.train.progress import format_seconds

        table = Table.grid(padding=(0, 2))
        for number, (name, (state, note)) in enumerate(self._states.items(), 1):
            if state == "running":
                note = format_seconds(time.monotonic() - self._started)
            table.add_row(
                f"{number}", name, Text(state, _COLOURS[state]), Text(note, overflow="ellipsis", no_wrap=True)
            )
        return Group(table, Text(self._progress, overflow="ellipsis", no_wrap=True))


@contextmanager
def view_of(names: Sequence[str]) -> Iterator[View]:
    """The view that suits what stderr is connected to."""
    if not sys.stderr.isatty():
        yield LogView(names)
        return
    from rich.console import Console
    from rich.live import Live

    view = TerminalView(names)
    live = Live(
        get_renderable=view.__rich__,
        console=Console(stderr=True),
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=False,
    )
    with ExitStack() as stack:
        stack.enter_context(live)
        stack.enter_context(progress_shown_by(view.progress))
        yield view
