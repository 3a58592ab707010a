from __future__ import annotations

import sys

import pytest

from camelid.train.metrics import StepMetrics
from camelid.train.progress import StepDisplay, format_seconds


def step(number: int) -> StepMetrics:
    return StepMetrics(number, 2.5, 1.25, 1e-3, 1.0, 64, 61.0, 0.1, 12345.6, 0.5)


def test_a_log_gets_a_plain_line_now_and_then(capsys) -> None:
    display = StepDisplay(25, log_every=10)
    for number in range(1, 26):
        display.show(step(number))
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25"]
    assert "loss 2.5000  1.250 bits/byte  12,346 tokens/s  MFU 50%  ETA" in lines[0]


def test_a_terminal_gets_one_line_that_renews_itself(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    display = StepDisplay(3, log_every=10)
    for number in (1, 2, 3):
        display.show(step(number))
    display.close()
    text = capsys.readouterr().err
    assert text.count("\r") == 3
    assert text.count("\n") == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (75, "1m 15s"), (3725, "1h 02m")])
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
