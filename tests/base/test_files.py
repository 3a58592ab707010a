"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from camelid.base.errors import NotFoundError, ResourceError
from camelid.base.files import atomic_file, atomic_folder, check_free_space, existing_file, format_bytes, sha256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "weights.bin"
    with atomic_file(target) as file:
        file.write(b"half")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert names(target.parent) == ["weights.bin"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(target) as file:
        file.write(b"new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["weights.bin"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no space left") as caught, atomic_file(tmp_path / "weights.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint
    assert names(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").touch()
    with atomic_folder(target) as folder:
        (folder / "fresh").write_text("1")
        assert (target / "stale").exists()
    assert names(target) == ["fresh"]
    assert names(tmp_path) == ["model"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").touch()
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "fresh").touch()
        raise RuntimeError
    assert names(target) == ["stale"]
    assert names(tmp_path) == ["model"]


def test_files_get_the_permissions_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_too_little_space_is_refused_before_writing(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(ResourceError, match="needed"):
        check_free_space(tmp_path / "not" / "there" / "yet", 2**62)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        existing_file(tmp_path / "missing")
    with pytest.raises(NotFoundError, match="folder"):
        existing_file(tmp_path)


def test_sha256_is_the_standard_digest(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-4, example of one block.
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (98_362_432, "98.4 MB"), (8.1e11, "810.0 GB"), (2e12, "2.0 TB")]
)
def test_sizes_are_written_for_people(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text
