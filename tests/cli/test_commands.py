"""The command line as a user meets it: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def camelid(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "camelid", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_help_lists_every_verb() -> None:
    from camelid.cli import VERBS

    done = camelid("--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS.names())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom camelid.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'rich', 'pydantic', 'tiktoken', 'huggingface_hub', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version() -> None:
    import camelid as package

    assert camelid("--version").stdout == f"camelid {package.__version__}\n"


def test_models_as_json_has_exact_numbers() -> None:
    listing = json.loads(camelid("models", "--json").stdout)
    rows = {row["name"]: row for row in listing["catalogue"]}
    assert rows["smollm2-135m-instruct"]["parameters"] == 134_515_008
    assert rows["llama-3.1-405b"]["memory_bytes"]["bfloat16"] == 2 * 405_853_388_800
    assert {row["name"] for row in listing["presets"]} >= {"llama-7b", "stories15m"}


def test_models_as_tables_prints_the_same() -> None:
    done = camelid("models")
    assert "405,853,388,800 131,072 1.6 TB 811.7 GB Llama 3.1 Community License" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (
            ["chat", "smollm2-135m-instrukt", "-p", "x"],
            "there is no model named",
            "did you mean 'smollm2-135m-instruct'",
        ),
        (["chat", "runs/missing", "-p", "x"], "runs/missing", "camelid pull runs/missing"),
        (["chta"], "there is no verb named 'chta'", "did you mean 'chat'"),
        (["pull", "no-such-model"], "there is no model named 'no-such-model'", "known:"),
        (["models", "rm", "llama-3.2-1b"], "has not been pulled", ""),
        (["tokenizer", "train", "missing.toml"], "there is no such file (missing.toml)", ""),
    ],
)
def test_mistakes_get_one_message_a_hint_and_exit_code_2(
    arguments: list[str], what: str, hint: str, tmp_path: Path
) -> None:
    done = camelid(*arguments, env={"CAMELID_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1 if not hint else -3].startswith("error: ")
    assert what in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_chat_without_terminal_and_prompt_says_so_and_ends() -> None:
    done = camelid("chat", "smollm2-135m-instruct")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing to answer" in done.stderr


def test_a_closed_standard_input_is_no_prompt() -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m camelid chat <&-', shell=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing to answer" in done.stderr


def test_text_that_the_locale_cannot_read_or_show_is_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "camelid", "chat", "no-such-model"],
        input=b"caf\xe9",
        capture_output=True,
        check=False,
        env={**os.environ, "CAMELID_HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 2
    vocabulary = ROOT / "tests/fixtures/tokenizers/llama2/tokenizer.model"
    shown = camelid("tokenizer", "decode", str(vocabulary), "30591", env={"PYTHONIOENCODING": "ascii:strict"})
    assert (shown.returncode, shown.stdout) == (0, "?\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m camelid models | head -1', shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.stdout


@pytest.mark.parametrize(("module", "page"), [("reference", "cli.md"), ("recipe_reference", "recipes.md")])
def test_the_references_are_up_to_date(module: str, page: str) -> None:
    reference = import_module(f"camelid.cli.{module}").reference
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert written == reference(), "run `make docs`"


def test_the_recipe_reference_says_what_a_recipe_takes() -> None:
    from camelid.cli.recipe_reference import reference

    text = reference()
    assert "| `model.shape.hidden_size` | integer | required |" in text
    assert '| `optimizer.name` | `"adamw"` or `"muon"` | `"adamw"` | "muon": Muon for the matrices' in text
    assert "| `data.sources.#.files` | string | required |" in text
    assert "### `near_dedup`" in text
