from __future__ import annotations

import errno
import hashlib
import shutil
from collections import namedtuple
from typing import TYPE_CHECKING

import pytest
from index_server import Index, serve

from camelid.base.errors import FormatError, NetworkError, NotFoundError, ResourceError
from camelid.checkpoint import download as download_module
from camelid.checkpoint.download import Connection, download

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, camelid_home: Path) -> Iterator[Index]:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.0)
    with serve(CONTENT) as index:
        yield index


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.partial"


def fetch(index: Index, partial: Path, sha256: str = SHA256, max_bytes: int = 1 << 20) -> bytes:
    return download(index.file_url, partial, sha256=sha256, max_bytes=max_bytes).read_bytes()


def test_a_file_arrives_whole(index: Index, partial: Path) -> None:
    assert fetch(index, partial) == CONTENT


def test_a_cut_connection_is_taken_up_where_it_broke(index: Index, partial: Path) -> None:
    index.cuts = [100_000, 50_000]

    assert fetch(index, partial) == CONTENT
    assert index.downloads == [None, "bytes=100000-", "bytes=150000-"]


def test_a_connection_that_falls_silent_is_given_up(
    index: Index, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", 0.2)
    index.cuts = [100_000]
    index.hangs = [True]

    assert fetch(index, partial) == CONTENT
    assert len(index.downloads) == 2


def test_a_later_call_goes_on_where_the_last_one_stopped(index: Index, partial: Path) -> None:
    index.cuts = [70_000]
    index.statuses = []
    index.downloads = []
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:30_000])

    assert fetch(index, partial) == CONTENT
    assert index.downloads == ["bytes=30000-", "bytes=100000-"]


def test_what_has_arrived_is_kept_when_the_server_stays_away(index: Index, partial: Path) -> None:
    index.cuts = [100_000, 0, 0, 0, 0]

    with pytest.raises(NetworkError, match="goes on where it stopped"):
        fetch(index, partial)

    assert partial.read_bytes() == CONTENT[:100_000]


def test_a_server_without_ranges_is_read_from_the_start(index: Index, partial: Path) -> None:
    index.ranges = False
    index.cuts = [100_000]

    assert fetch(index, partial) == CONTENT


def test_a_corrupt_beginning_is_noticed_and_fetched_anew(index: Index, partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 30_000)

    assert fetch(index, partial) == CONTENT
    assert index.downloads == ["bytes=30000-", None]


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"more", b"x" * len(CONTENT)], ids=["whole", "longer", "corrupt"])
def test_a_partial_as_long_as_the_file_or_longer(index: Index, partial: Path, there: bytes) -> None:
    partial.parent.mkdir()
    partial.write_bytes(there)

    assert fetch(index, partial) == CONTENT


def test_the_wrong_file_is_refused_and_deleted(index: Index, partial: Path) -> None:
    with pytest.raises(FormatError, match="not the one meant"):
        fetch(index, partial, sha256="0" * 64)

    assert not partial.exists()
    assert len(index.downloads) == 1


def test_an_overloaded_server_is_asked_again(index: Index, partial: Path) -> None:
    index.statuses = [503, 429]

    assert fetch(index, partial) == CONTENT


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (410, NotFoundError), (403, NetworkError)])
def test_a_refusal_is_final(index: Index, partial: Path, status: int, error: type[Exception]) -> None:
    index.statuses = [status] * 9

    with pytest.raises(error):
        fetch(index, partial)

    assert len(index.downloads) == 1


@pytest.mark.parametrize("length_header", [True, False])
def test_more_than_was_expected_is_refused(index: Index, partial: Path, length_header: bool) -> None:
    index.length_header = length_header

    with pytest.raises(FormatError, match="larger than"):
        fetch(index, partial, max_bytes=100_000)

    assert partial.stat().st_size <= 100_000


def test_nobody_answers(index: Index, partial: Path) -> None:
    url = index.file_url.replace("127.0.0.1", "localhost").rpartition(":")[0] + ":1/x.whl"

    with pytest.raises(NetworkError, match="cannot fetch"):
        download(url, partial, sha256=SHA256, max_bytes=1 << 20)


def test_a_password_in_the_address_stays_out_of_the_message(index: Index, partial: Path) -> None:
    index.statuses = [403]
    url = index.file_url.replace("127.0.0.1", "user:secret@127.0.0.1")

    with pytest.raises(NetworkError) as caught:
        download(url, partial, sha256=SHA256, max_bytes=1 << 20)

    assert "secret" not in str(caught.value)


def test_no_space_is_said_before_the_first_byte(index: Index, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))

    with pytest.raises(ResourceError, match="not enough disk space"):
        fetch(index, partial)

    assert partial.stat().st_size == 0


def test_a_disk_that_fills_up_keeps_what_fits(index: Index, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download_module, "check_free_space", full)

    with pytest.raises(ResourceError, match="no space left"):
        fetch(index, partial)


def test_two_processes_do_not_write_one_file(index: Index, partial: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    partial.parent.mkdir()

    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="another process"):
            fetch(index, partial)


def test_unreadable_certificates_are_named(partial: Path, tmp_path: Path) -> None:
    missing = tmp_path / "absent.pem"

    with pytest.raises(ResourceError, match=r"absent\.pem"):
        download(
            "https://localhost:1/x", partial, sha256=None, max_bytes=1, connection=Connection(ca_file=str(missing))
        )
