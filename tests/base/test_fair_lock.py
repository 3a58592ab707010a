"""The lock that changes hands."""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Event, Thread

from camelid.base.fair_lock import FairLock


def test_a_thread_in_a_loop_lets_the_others_in() -> None:
    lock, running, stop = FairLock(), Event(), Event()
    turns = 0

    def loop() -> None:
        nonlocal turns
        while not stop.is_set():
            with lock:
                running.set()
                turns += 1
                time.sleep(0.001)  # as a step of the engine does, it lets go of the interpreter

    thread = Thread(target=loop)
    thread.start()
    running.wait()
    asked = turns
    for _ in range(10):
        with lock:
            assert lock.is_mine
    taken = turns - asked
    stop.set()
    thread.join()
    assert taken <= 30
    assert not lock.is_mine


def test_it_is_free_again_after_an_error() -> None:
    lock = FairLock()
    with suppress(ValueError), lock:
        raise ValueError
    with lock:
        assert lock.is_mine
