"""A chat template from a stranger, rendered where it can do no harm.

A template is a program: jinja2's sandbox takes its tools away, but not its appetite (`'a' * 10**10`, nested loops,
`9**9**9`), and a thread that computes cannot be stopped. So each template lives in a process of its own, limited in
memory and killed when it takes too long, which also keeps the caller's interpreter free while it renders.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from camelid.base.errors import ChatFormatError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

MAX_TEMPLATE = 1 << 18
"""Characters of a template; the longest in use have some 20,000."""
MAX_ANSWER = 1 << 28
"""Bytes of one answer; above the worker's own limit, in case a template takes over the worker."""
START_SECONDS = 60.0
"""For a process to start, on a machine that is busy; usually 0.1 s."""
RENDER_SECONDS = 5.0
"""For compiling the template, and for one rendering; usually milliseconds, and less than one."""

_MESSAGES = {
    "TemplateRefusalError": "the chat template refuses the conversation: {}",
    "TemplateSyntaxError": "the chat template is not valid: {}",
    "TemplateAssertionError": "the chat template is not valid: {}",
    "SecurityError": "the chat template reaches for what it may not touch: {}",
    "MemoryError": "the chat template takes more memory than a rendering may",
    "RecursionError": "the chat template calls itself without end",
}


class Template:
    """A Jinja chat template with the variables and functions that transformers gives one.

        template = Template(text)
        template.render({"messages": [...], "add_generation_prompt": True}, markers=markers, now=datetime.now())

    Starting is cheap: the process is only waited for by the first rendering. Threads may share a template; they take
    turns. A process that is forked off starts a worker of its own.

    Raises:
        ChatFormatError: the template is too long.
    """

    def __init__(self, text: str, *, seconds: float = RENDER_SECONDS) -> None:
        if len(text) > MAX_TEMPLATE:
            raise ChatFormatError(f"the chat template has {len(text)} characters; the limit is {MAX_TEMPLATE}")
        self.text = text
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker = _Worker(text)

    def render(self, variables: Mapping[str, Any], *, markers: tuple[str, str, str], now: datetime) -> str:
        """The rendered text.

        Args:
            variables: what the template sees, plain JSON.
            markers: a `camelid.tokenizer.chat_spans.Markers`; the last two go around `{% generation %}` blocks.
            now: the local time that `strftime_now` tells.

        Raises:
            ChatFormatError: the template is broken, refuses the conversation, or exceeds its limits.
        """
        request = {"variables": variables, "markers": markers, "now": now.isoformat()}
        with self._running_worker() as worker:
            return worker.ask(request, self._seconds)

    def variables(self) -> frozenset[str]:
        """Names of the variables that the template reads.

        Raises:
            ChatFormatError: the template is broken.
        """
        with self._running_worker() as worker:
            return worker.variables(self._seconds)

    @contextmanager
    def _running_worker(self) -> Iterator[_Worker]:
        if self._worker.pid != os.getpid():  # this is a fork: the worker, and perhaps the lock, are the parent's
            self._lock, self._worker = threading.Lock(), _Worker(self.text)
        with self._lock:
            if self._worker.stopped:
                self._worker = _Worker(self.text)
            try:
                yield self._worker
            except ChatFormatError:
                raise
            except BaseException:  # an answer is still to come, and nobody waits for it (Ctrl-C)
                self._worker.stop()
                raise

    def close(self) -> None:
        """Stop the process; a later rendering starts another."""
        self._worker.stop()


class _Worker:
    """One process with one template."""

    def __init__(self, template: str) -> None:
        self.pid = os.getpid()
        self.stopped = False
        self._variables: frozenset[str] | None = None  # known once the template is compiled
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        process = _start()
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests = process.stdin
        self._finalize = weakref.finalize(self, _stop, process, self.pid)
        threading.Thread(target=_read_lines, args=(process.stdout, self._answers), daemon=True).start()
        self._send({"template": template})

    def ask(self, request: Mapping[str, Any], seconds: float) -> str:
        self.variables(seconds)
        self._send(request)
        return self._receive(seconds)

    def variables(self, seconds: float) -> frozenset[str]:
        if self._variables is None:
            self._receive(START_SECONDS)
            self._variables = frozenset(self._receive(seconds).split())
        return self._variables

    def stop(self) -> None:
        self.stopped = True
        self._finalize()

    def _send(self, request: Mapping[str, Any]) -> None:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError:
            self.stopped = True  # the worker died; `_receive` finds its pipe closed and says so

    def _receive(self, seconds: float) -> str:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            raise ChatFormatError(f"the chat template takes more than {seconds:g} seconds") from None
        try:
            answer = json.loads(line)
        except ValueError:
            self.stop()
            raise ChatFormatError("the chat template took its process down or wrote too much") from None
        if "text" in answer:
            return str(answer["text"])
        message = _MESSAGES.get(answer["kind"], "the chat template fails: {}").format(answer["error"])
        where = f"line {answer['line']} of the chat template" if answer["line"] else "chat template"
        if self._variables is None:
            self.stop()
        raise ChatFormatError(message, where=where)


def _start() -> subprocess.Popen[bytes]:
    worker = Path(__file__).with_name("template_worker.py")
    specs = [find_spec(name) for name in ("jinja2", "markupsafe")]
    packages = sorted({str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin})
    # Nothing else of the caller's environment goes along: it holds keys. Python itself may need these to start.
    needed = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in needed if name in os.environ}
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(worker), *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the caller alone
        )
    except OSError as error:
        raise ResourceError(f"cannot start the process that renders chat templates: {error}") from None


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # a fork leaves its parent's worker alone
        process.kill()
        process.wait()
        if process.stdin is not None:
            with suppress(OSError):  # what was not sent yet has nowhere to go
                process.stdin.close()


def _read_lines(source: BinaryIO, lines: queue.SimpleQueue[bytes]) -> None:
    """Hand on each line; an empty one at the end, or where a line is longer than any answer."""
    with source:
        while (line := source.readline(MAX_ANSWER)).endswith(b"\n"):
            lines.put(line)
    lines.put(b"")
