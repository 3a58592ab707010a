"""Whether Ctrl-C or SIGTERM came, whoever handled it."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from camelid.train.interrupt import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def signals_seen() -> Iterator[Callable[[], bool]]:
    """A function that tells whether one of them came since the block began.

    A trainer takes the first signal as a wish to stop and ends its step. If that was the run's last step, it has
    finished and nothing in its result tells of the wish; Python's wake-up descriptor does. Outside the main thread
    none is ever seen, as Python delivers signals to the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = socket.socketpair()
    with closing(reader), closing(writer):
        reader.setblocking(False)
        writer.setblocking(False)
        seen = False

        def came() -> bool:
            nonlocal seen
            with suppress(BlockingIOError):  # nothing came
                seen = seen or any(number in SIGNALS for number in reader.recv(4096))
            return seen

        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield came
        finally:
            signal.set_wakeup_fd(before)
