"""The house: who may import whom, and what importing costs. Holds the code to the table of docs/explanation/map.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "camelid"

MAY_IMPORT = {
    "base": set(),
    "tokenizer": set(),
    "kernels": set(),
    "codecs": {"kernels"},
    "model": {"kernels", "codecs"},
    "checkpoint": {"model", "tokenizer", "codecs"},
    "engine": {"model", "kernels", "codecs"},
    "llm": {"engine", "checkpoint", "tokenizer", "model"},
    "data": {"tokenizer"},
    "plan": {"model", "kernels"},
    "train": {"model", "kernels", "data", "tokenizer", "checkpoint", "plan", "llm"},
    "evaluate": {"llm", "data", "tokenizer", "checkpoint", "model"},
    "posttrain": {"train", "evaluate", "llm", "engine", "data", "model", "tokenizer", "checkpoint", "plan"},
    "pipeline": {"train", "posttrain", "evaluate", "data", "tokenizer", "plan", "llm", "checkpoint", "model"},
    "cli": {
        "data",
        "train",
        "tokenizer",
        "codecs",
        "model",
        "checkpoint",
        "engine",
        "llm",
        "plan",
        "evaluate",
        "posttrain",
        "pipeline",
    },
}
"""Room → the rooms it may import, besides itself and base."""

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_rooms(path: Path) -> set[str]:
    """Rooms named by any import of the file, at the top or inside a function, or by a registry entry."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"camelid.{alias.name}" for alias in node.names] if node.module == "camelid" else [node.module or ""]
            )
            assert node.level == 0, f"{path}: relative import"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("camelid."):
            names = [node.value.partition(":")[0]] if ":" in node.value else []
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("camelid.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_the_table(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in MAY_IMPORT, f"{room} is not a room of the house"
    allowed = MAY_IMPORT[room] | {room, "base", "__version__"}
    assert imported_rooms(path) <= allowed, f"{room} may not import {imported_rooms(path) - allowed}"


def test_no_file_hides_behind_an_empty_name() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "common", "helpers", "misc"}]


def test_files_stay_readable() -> None:
    long = {str(path.relative_to(SOURCE)): n for path in FILES if (n := len(path.read_text().splitlines())) > 600}
    assert not long, "past 600 lines a file is split by concept"


PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def reads_pickles(path: Path) -> bool:
    """Whether a file imports a module that unpickles, or calls what does so: torch.load, numpy's allow_pickle."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and {alias.name.split(".")[0] for alias in node.names} & PICKLERS:
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.serialization"):
            return True
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            return True
    return False


def test_untrusted_pickles_are_never_read() -> None:
    assert not [path for path in FILES if reads_pickles(path)]


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import loads", "torch.load(p)", "np.load(p, allow_pickle=True)", "import joblib"],
)
def test_a_reader_of_pickles_would_be_found(code: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(code)
    assert reads_pickles(tmp_path / "code.py")


@pytest.mark.parametrize(
    "module",
    ["camelid", "camelid.cli.main", "camelid.tokenizer", "camelid.checkpoint", "camelid.data", "camelid.engine.params"],
)
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_verb_is_listed_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from camelid.cli import VERBS\n"
        "for name in VERBS.names(): VERBS.load(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
