"""The process that renders one chat template; `camelid.tokenizer.template` starts it and talks to it.

It is run as a script, so it imports nothing of camelid. Lines of JSON go both ways: an empty answer says that it is
ready; then comes the template, answered by the names of the variables it reads; then conversations, each answered by
the text or by what went wrong. Templates come from strangers: jinja2's immutable sandbox is the first wall; this
process, which may open no file and outgrow no limit and which its parent kills when it takes too long, is the second.
"""

from __future__ import annotations

import codecs
import contextlib
import html  # noqa: F401 - markupsafe imports it for the first `striptags`, when no file can be opened any more
import json
import re
import signal
import sys
import textwrap  # noqa: F401 - and jinja2 for the first `wordwrap`
from datetime import datetime
from typing import Any, BinaryIO, cast

sys.path += sys.argv[1:]  # where the parent finds jinja2 and markupsafe

import jinja2
import jinja2.debug  # jinja2 imports it with the first error, when no file can be opened any more
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_MEMORY = 1 << 29
"""Bytes of address space: Python and jinja2 take 30 MiB, a rendering of `MAX_OUTPUT` up to 300 MiB."""
MAX_OUTPUT = 1 << 24
"""Characters of a rendering: about four million tokens."""
MAX_SECONDS = 60
"""For one request, should the parent, whose clock is stricter, have died."""


class TemplateRefusalError(Exception):
    """What a template says with `raise_exception`."""


class Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` around what the assistant produces; here it puts marks there."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so
    marks = ("", "")

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A call of `_mark` with the block as its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{self.marks[0]}{caller()}{self.marks[1]}"


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, where touching what one may not is an error even if nothing comes of it."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Refuse an unsafe attribute; jinja2 would hand out an undefined value, which prints as nothing."""
        raise jinja2.exceptions.SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__}")


class Renderer:
    """A compiled template, in the environment that transformers gives one."""

    def __init__(self, template: str) -> None:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = self._to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=self._strftime_now)
        self._generation = cast("Generation", environment.extensions[Generation.identifier])
        self._broken = ""
        self._now = datetime.min
        self._template = environment.from_string(template)
        self.names = sorted(jinja2.meta.find_undeclared_variables(environment.parse(template)))
        """Variables that the template reads."""

    def render(self, variables: dict[str, Any], markers: list[str], now: str) -> str:
        """The rendered text; see `camelid.tokenizer.chat_spans.Markers`."""
        self._broken, *learned = markers
        self._generation.marks = (learned[0], learned[1])
        self._now = datetime.fromisoformat(now)
        blocks: list[str] = []
        length = 0
        for block in self._template.generate(variables):
            blocks.append(block)
            length += len(block)
            if length > MAX_OUTPUT:
                raise OverflowError(f"the rendering is longer than {MAX_OUTPUT} characters")
        return "".join(blocks)

    def _strftime_now(self, form: str) -> str:
        return self._now.strftime(form)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if ensure_ascii:  # the marker has to stay one character
            escaped = re.escape(json.dumps(self._broken)[1:-1])
            text = re.sub(rf"(?<!\\)((?:\\\\)*){escaped}", rf"\1{self._broken}", text)
        return text


def _raise_exception(message: str) -> None:
    raise TemplateRefusalError(str(message))


def _limit_resources() -> None:
    with contextlib.suppress(ImportError):  # Windows has no resource limits; the parent's clock holds there too
        import resource

        for name, value in (("RLIMIT_AS", MAX_MEMORY), ("RLIMIT_NOFILE", 0), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
            if hasattr(resource, name):
                with contextlib.suppress(ValueError, OSError):  # a lower limit is in force already
                    resource.setrlimit(getattr(resource, name), (value, value))


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    line = json.dumps(answer).encode() + b"\n"
    answers.write(line)
    answers.flush()


def _problem(error: BaseException) -> dict[str, Any]:
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return {"error": str(error)[:2000], "kind": type(error).__name__, "line": line}


def main() -> None:
    """Serve until the parent closes the pipe."""
    codecs.lookup("unicode_escape")  # jinja2 imports it with the first string
    renderer: Renderer | None = None
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _limit_resources()
    _send(answers, {"text": ""})
    for line in requests:
        if hasattr(signal, "alarm"):
            signal.alarm(MAX_SECONDS)
        try:
            request = json.loads(line)
            if renderer is None:
                renderer = Renderer(request["template"])
                answer: dict[str, Any] = {"text": " ".join(renderer.names)}
            else:
                answer = {"text": renderer.render(**request)}
            _send(answers, answer)
        except Exception as error:  # noqa: BLE001 - a template may raise anything; the parent gives it a name
            _send(answers, _problem(error))
        if hasattr(signal, "alarm"):
            signal.alarm(0)


if __name__ == "__main__":
    main()
