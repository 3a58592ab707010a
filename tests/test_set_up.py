"""`make`: what it asks pip for, what it refuses, and what it recovers from. Python itself is a stand-in here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PYTHON = r"""#!/bin/sh
case "$1" in
-)  cat >/dev/null; exit "${NO_TORCH:-0}" ;;
-c) case "$2" in
    *version_info*) echo "${VERSION:-3.12}"; exit "${OLD:-0}" ;;
    *) exit 0 ;;
    esac ;;
esac
if [ "$3" = --version ]; then [ -e "$0.pip" ]; exit; fi
printf '%s|' "${PIP_INDEX_URL:-}" "$@" >>"$LOG"; echo >>"$LOG"
case "$2" in
venv)
    for folder; do :; done
    mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"; cp "$CAMELID" "$folder/bin/camelid" ;;
ensurepip) touch "$0.pip" ;;
esac
"""
CAMELID = '#!/bin/sh\nprintf "<%s>" "$@"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make needs of this repository, in a folder with a space, and a Python that logs instead of working."""
    folder = tmp_path / "a checkout"
    (folder / "src/camelid/kernels").mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("Makefile", "pyproject.toml", "CMakeLists.txt"):
        shutil.copy(ROOT / name, folder)
    for name, text in (("python", PYTHON), ("camelid", CAMELID)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return folder


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PYTHON": str(checkout.parent / "python"), "VENV": "an environment", "PROMPT": ""}
    ours = {"LOG": str(checkout.parent / "log"), "CAMELID": str(checkout.parent / "camelid"), **given, **environment}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**kept, **ours},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def calls(checkout: Path) -> list[str]:
    log = checkout.parent / "log"
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return text.splitlines()


def test_a_second_run_calls_no_pip(checkout: Path) -> None:
    assert make(checkout, "chat").returncode == 0
    assert any("|--editable|" in call for call in calls(checkout))
    done = make(checkout, "chat")
    assert (done.returncode, done.stdout) == (0, "<chat><smollm2-135m-instruct>")
    assert calls(checkout) == []


@pytest.mark.parametrize(
    "prompt", ["costs $5, $HOME, $(VENV), $$", "say \"a\" and 'b'", "two\nlines", "`id`; # é 😀", "-x"]
)
def test_a_prompt_arrives_as_it_was_written(checkout: Path, prompt: str) -> None:
    said = f"<chat><smollm2-135m-instruct><--prompt><{prompt}>"
    assert make(checkout, "chat", f"PROMPT={prompt}").stdout == said
    assert make(checkout, "chat", PROMPT=prompt).stdout == said


def test_package_indexes_reach_pip(checkout: Path) -> None:
    make(checkout, "chat", "INDEX_URL=http://all/simple", "TORCH_INDEX_URL=http://cpu", NO_TORCH="1")
    torch, *others = [call for call in calls(checkout) if "|install|" in call and "|--upgrade|" not in call]
    assert "|install|--index-url|http://cpu|torch==" in torch
    assert len(others) == 2
    assert all(call.startswith("http://all/simple|") for call in others)


def test_a_torch_that_is_there_is_kept(checkout: Path) -> None:
    assert make(checkout, "chat").returncode == 0
    assert not any("|torch==" in call for call in calls(checkout))


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({"PYTHON": "/no/such/python"}, "there is no '/no/such/python'"),
        ({"PYTHON": "false"}, "'false' does not run camelid"),
        ({"VERSION": "3.10", "OLD": "1"}, "is Python 3.10"),
    ],
)
def test_a_python_that_does_not_fit_is_refused(checkout: Path, environment: dict[str, str], what: str) -> None:
    done = make(checkout, "chat", **environment)
    assert done.returncode == 2
    assert what in done.stderr
    assert "\n\nhint: " in done.stderr
    assert calls(checkout) == []


def test_an_environment_with_an_old_python_is_refused_before_anything_is_installed(checkout: Path) -> None:
    (checkout / "an environment/bin").mkdir(parents=True)
    shutil.copy(checkout.parent / "python", checkout / "an environment/bin/python")
    done = make(checkout, "chat", VERSION="3.10", OLD="1")
    assert "an environment/bin/python' is Python 3.10" in done.stderr
    assert calls(checkout) == []


def test_an_environment_without_pip_gets_one(checkout: Path) -> None:
    (checkout / "an environment/bin").mkdir(parents=True)
    for name in ("python", "camelid"):
        shutil.copy(checkout.parent / name, checkout / "an environment/bin")
    assert make(checkout, "chat").returncode == 0
    assert any("|ensurepip|" in call for call in calls(checkout))


def test_an_environment_whose_python_has_gone_is_made_again(checkout: Path) -> None:
    assert make(checkout, "chat").returncode == 0
    python = checkout / "an environment/bin/python"
    python.unlink()
    python.symlink_to("/no/such/python")
    assert make(checkout, "chat").stdout == "<chat><smollm2-135m-instruct>"
    assert python.is_file()


def test_make_alone_shows_how_to_use_it(checkout: Path) -> None:
    done = make(checkout)
    assert "make chat PROMPT=" in done.stdout
    assert "Threads" not in done.stdout
