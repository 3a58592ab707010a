"""The progress of a run on stderr: one line that renews itself on a terminal, plain lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from camelid.base.progress import progress_view

if TYPE_CHECKING:
    from camelid.train.metrics import StepMetrics


class StepDisplay:
    """Shows steps as they are made.

    Args:
        steps: of the whole run.
        log_every: steps between plain lines.
        resumed_at: steps made before.
    """

    def __init__(self, steps: int, log_every: int, resumed_at: int = 0) -> None:
        self._steps = steps
        self._log_every = log_every
        self._resumed_at = resumed_at
        self._started = time.monotonic()
        self._view = progress_view()
        self._live = self._view is None and sys.stderr.isatty()
        if resumed_at:
            self.say(f"going on from the checkpoint of step {resumed_at}")

    def show(self, metrics: StepMetrics) -> None:
        """Show one step."""
        if self._view is not None:
            self._view(self.line(metrics))
        elif self._live:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + self.line(metrics)[:width].ljust(width), end="", file=sys.stderr, flush=True)
        elif metrics.step % self._log_every == 0 or metrics.step in (self._resumed_at + 1, self._steps):
            print(self.line(metrics), file=sys.stderr, flush=True)
        if metrics.validation_loss is not None:
            bits = metrics.validation_bits_per_byte
            per_byte = "" if bits is None else f"  {bits:.3f} bits/byte"
            self.say(f"validation {metrics.step}/{self._steps}  loss {metrics.validation_loss:.4f}{per_byte}")

    def line(self, metrics: StepMetrics) -> str:
        """The state as one line."""
        made = metrics.step - self._resumed_at
        seconds_left = (time.monotonic() - self._started) / made * (self._steps - metrics.step)
        bits = "" if metrics.bits_per_byte is None else f"  {metrics.bits_per_byte:.3f} bits/byte"
        return (
            f"step {metrics.step}/{self._steps}  loss {metrics.loss:.4f}{bits}  "
            f"{metrics.tokens_per_second:,.0f} tokens/s  MFU {metrics.mfu:.0%}  ETA {format_seconds(seconds_left)}"
        )

    def say(self, text: str) -> None:
        """A line of its own."""
        print(("\n" if self._live else "") + text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._live:
            print(file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """A time for people: 3725 → '1h 02m'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
