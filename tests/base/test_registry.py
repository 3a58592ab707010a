"""Registries load lazily, accept plug-ins and name the nearest known entry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from camelid.base.errors import NotFoundError, did_you_mean
from camelid.base.registry import Registry

SHAPES: Registry[type] = Registry("shape", "camelid.test_shapes", {"fraction": "fractions:Fraction", "bad": "no:x"})


def test_an_entry_is_imported_when_asked_for() -> None:
    from fractions import Fraction

    assert SHAPES.load("fraction") is Fraction
    assert SHAPES.names() == ["bad", "fraction"]


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(NotFoundError, match="no shape named 'fractoin'") as caught:
        SHAPES.load("fractoin")
    assert caught.value.hint == "did you mean 'fraction'?"


def test_a_package_adds_an_entry_with_an_entry_point(tmp_path: Path) -> None:
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[camelid.test_shapes]\ndecimal = decimal:Decimal\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from camelid.base.registry import Registry\n"
        "print(Registry('shape', 'camelid.test_shapes', {}).load('decimal').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Decimal", done.stderr


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("lama", ["llama", "opt"], "did you mean 'llama'?"),
        ("xyz", ["opt", "llama"], "known: llama, opt"),
        ("xyz", [], None),
        ("xyz", [f"model{i:02}" for i in range(99)], "known: " + ", ".join(f"model{i:02}" for i in range(12)) + ", …"),
    ],
)
def test_hints_help(name: str, known: list[str], hint: str | None) -> None:
    assert did_you_mean(name, known) == hint
