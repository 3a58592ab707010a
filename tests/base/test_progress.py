"""Progress: plain lines in a log, numbers that add up."""

from __future__ import annotations

import pytest

from camelid.base import progress as module
from camelid.base.progress import Progress, progress


def test_a_log_gets_plain_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0, 6.0, 7.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("reading", total=4_000_000) as shown:
        shown.advance(500_000)
        shown.advance(500_000)
        shown.advance(1_000_000)
    assert capsys.readouterr().err == "reading: 1.0 MB of 4.0 MB (25%), 166.7 kB/s, 18 s left\n"


def test_things_are_counted_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    shown = Progress("cleaning", None, "documents")
    shown.advance(10)
    assert shown.line() == "cleaning: 10 documents, 5 documents/s"
