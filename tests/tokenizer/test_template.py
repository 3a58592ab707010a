"""Templates from strangers: what they may not do, and that the next rendering works all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest

from camelid.base.errors import ChatFormatError
from camelid.tokenizer import template as template_module
from camelid.tokenizer.template import MAX_TEMPLATE, Template

MARKERS = ("\U000e0100", "\U000e0101", "\U000e0102")
SECRET = "hush-2718"
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="memory limits hold on Linux alone")


def render(template: Template, **variables: object) -> str:
    variables = {"messages": [{"role": "user", "content": "Hello"}], **variables}
    return template.render(variables, markers=MARKERS, now=datetime(2024, 9, 21))


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(raise_exception) }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ ['{0.__class__.__mro__}']|map('format', '')|list }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ ['']|groupby('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__ }}",
    "{{ strftime_now.__func__.__globals__['sys'].modules }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ self.__init__.__globals__ }}",
    "{% for key in self %}{{ key.__class__ }}{% endfor %}",
    "{{ joiner.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.clear() }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "{% set x = namespace() %}{{ x.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ import('os') }}",
    "{{ open('/etc/passwd') }}",
    "{{ url_for.__globals__ }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_escape_is_an_error(text, monkeypatch):
    monkeypatch.setenv("CAMELID_TEST_SECRET", SECRET)
    with pytest.raises(ChatFormatError) as caught:
        render(Template(text))
    assert "template" in str(caught.value)
    assert SECRET not in str(caught.value)


HUNGRY = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "deep loops": "{% for a in range(9999) %}" * 5 + "{% endfor %}" * 5,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "power": "{{ (9 ** (9 ** 9)) | string | length }}",
    "power of data": "{% set n = messages | length + 8 %}{{ n ** (n ** n) }}",
    "filter loop": "{{ [1] | slice(10 ** 9) | list | length }}",
    "shared lists": (
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HUNGRY))
def test_endless_template_is_stopped(name):
    template = Template(HUNGRY[name], seconds=0.5)
    started = time.monotonic()
    with pytest.raises(ChatFormatError):
        render(template)
    assert time.monotonic() - started < 30


LARGE = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ [0] * 10 ** 10 }}",
    "{% set n = messages | length * 10 %}{{ 'a' * n ** 10 }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ 'a\nb' | indent(10 ** 10) }}",
    "{{ {'a': 1} | tojson(indent=10 ** 10) }}",
    "{{ [1] | batch(10 ** 10, 1) | list }}",
    "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}{{ n.s }}",
    "{% set s %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}{{ s }}",
]  # fmt: skip


@LINUX_ONLY
@pytest.mark.parametrize("text", LARGE)
def test_memory_of_a_template_is_limited(text):
    with pytest.raises(ChatFormatError, match=r"memory|seconds|fails"):
        render(Template(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for %}", "not valid"),
        ("{{ x | nofilter }}", "not valid"),
        ("{{ x.y.z }}", "'x' is undefined"),
        ("{{ raise_exception('alternate, please') }}", "refuses the conversation: alternate, please"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ 'a' * 2 ** 25 }}", "longer than"),
        ("{{ 1 // 0 }}", "division"),
    ],
)
def test_failure_is_told_plainly(text, message):
    with pytest.raises(ChatFormatError, match=message):
        render(Template(text))


def test_error_names_the_line():
    with pytest.raises(ChatFormatError) as caught:
        render(Template("first\nsecond\n{{ x.y.z }}"))
    assert caught.value.where == "line 3 of the chat template"


def test_template_that_is_too_long_is_refused():
    with pytest.raises(ChatFormatError, match="characters"):
        Template("a" * (MAX_TEMPLATE + 1))


def test_template_works_again_after_an_error_and_after_being_stopped():
    template = Template("{% if bad %}{{ x.y.z }}{% elif slow %}" + HUNGRY["nested loops"] + "{% else %}fine{% endif %}")
    template._seconds = 1.0
    for trouble in ("bad", "slow"):
        with pytest.raises(ChatFormatError):
            render(template, **{trouble: True})
        assert render(template) == "fine"
    template.close()
    assert render(template) == "fine"


def test_blocks_are_trimmed_as_transformers_trims_them():
    assert (
        render(Template("{% if true %}\n    {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\n{% endif %}"))
        == "user\n"
    )


def test_loop_controls_and_generation_marks():
    once = "{% generation %}{{ i }}{% endgeneration %}"
    text = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}" + once + "{% endfor %}"
    _, learn, given = MARKERS
    assert render(Template(text)) == f"{learn}0{given}{learn}1{given}"


def test_clock_of_the_caller_is_the_clock_of_the_template():
    assert render(Template("{{ strftime_now('%d %b %Y') }}")) == "21 Sep 2024"


def test_threads_may_share_a_template():
    template = Template("{{ mood }}")
    answers: dict[int, str] = {}

    def ask(n: int) -> None:
        answers[n] = "".join(render(template, mood=n) for _ in range(20))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: str(n) * 20 for n in range(4)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_fork_neither_shares_nor_kills_the_worker():
    code = """
import os, sys
from datetime import datetime
from camelid.tokenizer.template import Template
template = Template("{{ mood }}")
render = lambda mood: template.render({"mood": mood}, markers=("a", "b", "c"), now=datetime.now())
assert render(1) == "1"
child = os.fork()
if child == 0:
    assert render(2) == "2"
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
worker = template._worker
assert render(3) == "3" and template._worker is worker and not worker.stopped
print("good")
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("good", "")


def test_interrupted_rendering_leaves_no_answer_behind(monkeypatch):
    template = Template("{{ mood }}")
    assert render(template, mood=1) == "1"

    def interrupt(*args: object, **kwargs: object) -> bytes:
        raise KeyboardInterrupt

    class Interrupting:
        get = interrupt

    monkeypatch.setattr(template._worker, "_answers", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        render(template, mood=2)
    assert render(template, mood=3) == "3"


def test_worker_gets_nothing_of_the_environment_but_what_python_needs(monkeypatch):
    seen = {}
    real = subprocess.Popen

    def spy(*args, **kwargs):
        seen.update(kwargs["env"])
        return real(*args, **kwargs)

    monkeypatch.setenv("CAMELID_TEST_SECRET", SECRET)
    monkeypatch.setattr(template_module.subprocess, "Popen", spy)
    assert render(Template("fine")) == "fine"
    assert SECRET not in seen.values()
