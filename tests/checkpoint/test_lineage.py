from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from camelid import __version__
from camelid.base.errors import FormatError, NotFoundError
from camelid.checkpoint.lineage import LINEAGE, read_lineage, verify_lineage, write_lineage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "params.json").write_text("abc")
    write_lineage(tmp_path, {"parent": "cria", "data": {"sha256": "12"}})
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    lineage = read_lineage(folder)

    assert lineage.camelid == __version__
    assert lineage.facts == {"parent": "cria", "data": {"sha256": "12"}}
    assert lineage.files["original/params.json"].bytes == 3
    assert lineage.files["original/params.json"].sha256.startswith("ba7816bf")  # SHA-256("abc"), FIPS 180-2 B.1
    assert verify_lineage(folder) == lineage


def test_a_changed_file_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("[]")

    with pytest.raises(FormatError, match=r"'config\.json' is not the file"):
        verify_lineage(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()

    with pytest.raises(NotFoundError, match=r"'config\.json' is missing"):
        verify_lineage(folder)


def test_a_file_that_was_added_is_named(folder: Path) -> None:
    (folder / "extra.py").write_text("")

    with pytest.raises(FormatError, match=r"does not name extra\.py"):
        verify_lineage(folder)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_lineage(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"format": 9}', "[" * 60_000),
        '{"format": 1, "camelid": "1", "files": {"x": 3}}',
        '{"format": 1, "camelid": "1", "files": {"x": {"sha256": "", "bytes": Infinity}}}',
    ],
)
def test_a_broken_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / LINEAGE).write_text(text)

    with pytest.raises(FormatError, match="lineage"):
        read_lineage(tmp_path)


def test_it_is_readable_by_people_and_holds_no_clock(folder: Path) -> None:
    document = json.loads((folder / LINEAGE).read_text())

    assert list(document) == ["format", "camelid", "parent", "data", "files"]
