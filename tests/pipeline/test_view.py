from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from camelid.base.progress import progress
from camelid.pipeline.view import TerminalView, view_of
from camelid.train.metrics import StepMetrics
from camelid.train.progress import StepDisplay

STEP = StepMetrics(3, 2.5, None, 1e-3, 1.0, 64, 61.0, 0.1, 640.0, 0.5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(view: TerminalView) -> list[str]:
    console = Console(file=io.StringIO(), width=60)
    console.print(view)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_log_gets_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    with view_of(["one", "two"]) as view:
        view.set("one", "cached", "out/one")
        view.set("two", "running")
        view.set("two", "done", "3s")
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] one: cached, out/one",
        "[2/2] two: running",
        "[2/2] two: done, 3s",
    ]


def test_a_terminal_shows_all_stages_with_the_running_ones_progress_beneath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with view_of(["one", "two", "three"]) as view:
        assert isinstance(view, TerminalView)
        view.set("one", "done", "3s")
        view.set("two", "running")
        with progress("cleaning", 10, "documents") as bar:
            bar.advance(4)
            *stages, line = shown(view)
        assert [row.split() for row in stages] == [
            ["1", "one", "done", "3s"],
            ["2", "two", "running", "0s"],
            ["3", "three", "waiting"],
        ]
        assert line.startswith("cleaning: 4 documents of 10 documents (40%)")

        display = StepDisplay(steps=5, log_every=1)
        display.show(STEP)
        assert shown(view)[-1].startswith("step 3/5  loss 2.5000")
        display.close()

        view.set("two", "done")
        assert "step 3/5" not in "".join(shown(view)), "a stage that is done has no progress"


def test_after_a_pipeline_progress_is_shown_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        with view_of(["one"]):
            pass
    StepDisplay(steps=5, log_every=1).show(STEP)
    assert capsys.readouterr().err.startswith("step 3/5")
