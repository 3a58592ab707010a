"""Fetch one file over HTTP: it goes on where an earlier try stopped, and only the right bytes are kept."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from camelid.base.errors import CamelidError, FormatError, NetworkError, NotFoundError, ResourceError
from camelid.base.files import check_free_space, disk_error, format_bytes
from camelid.base.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
"""Without a byte for this long, a connection counts as lost."""

MAX_FRUITLESS_TRIES = 4
"""Tries in a row that bring no byte before giving up; one that brings some starts the count anew."""

PAUSE_SECONDS = 1.0
"""Before the second try; doubled before each further one."""

AGAIN = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True)
class Connection:
    """The user's own way to the outside, beside the proxies that the environment names."""

    ca_file: str | None = None
    """Certificates to trust instead of the system's."""
    proxy: str | None = None

    def opener(self) -> urllib.request.OpenerDirector:
        """An opener that goes this way.

        Raises:
            ResourceError: the certificates cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ResourceError(f"cannot read the certificates: {error}", where=self.ca_file) from error
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
        if self.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        return urllib.request.build_opener(*handlers)


def download(
    url: str, partial: Path, *, sha256: str | None, max_bytes: int, connection: Connection | None = None
) -> Path:
    """Bring a file's bytes into `partial`, starting from those that are there already.

    Args:
        url: an http or https address.
        partial: the unfinished file of this and earlier tries.
        sha256: of the whole file; None where the caller checks what is inside.
        max_bytes: refuse a file that is larger.
        connection: certificates and proxy.

    Returns:
        `partial`, complete and checked.

    Raises:
        NotFoundError: the server does not have the file.
        NetworkError: the connection failed; what has arrived is kept for the next try.
        FormatError: a whole file has arrived, and it is not the one meant; it is deleted.
        ResourceError: the disk is full, or another process is fetching the same file.
    """
    with _locked(partial) as file:
        resumed = file.seek(0, 2) > 0
        _fetch(url, file, partial, max_bytes, connection)
        if resumed and sha256 is not None and _hash(file) != sha256:
            file.truncate(0)
            _fetch(url, file, partial, max_bytes, connection)
        if sha256 is not None and (found := _hash(file)) != sha256:
            partial.unlink()
            raise FormatError(
                f"the file that arrived is not the one meant: its sha256 is {found}, not {sha256}",
                where=_public(url),
                hint="try again; if it stays so, do not trust this source",
            )
    return partial


@contextmanager
def _locked(partial: Path) -> Iterator[IO[bytes]]:
    """The file, open for reading and appending, held against every other process that would write it."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("a+b") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass  # Windows: two processes that fetch one file at once are found out by the hash
            except BlockingIOError as error:
                raise ResourceError(
                    "another process is fetching this file", where=partial, hint="wait for it to finish"
                ) from error
            yield file
    except OSError as error:
        raise disk_error(error, partial) from error


def _fetch(url: str, file: IO[bytes], partial: Path, max_bytes: int, connection: Connection | None) -> None:
    """Append to `file` until it is complete, over as many connections as that takes."""
    opener = (connection or Connection()).opener()
    fruitless = 0
    while True:
        before = file.seek(0, 2)
        try:
            if _receive(opener, url, file, partial, max_bytes):
                return
            failure = "the connection closed early"
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            failure = _explain(error, url)
        fruitless = 0 if file.seek(0, 2) > before else fruitless + 1
        if fruitless >= MAX_FRUITLESS_TRIES:
            raise NetworkError(f"cannot fetch the file: {failure}", where=_public(url), hint=AGAIN)
        time.sleep(PAUSE_SECONDS * 2 ** max(fruitless - 1, 0))


def _receive(opener: urllib.request.OpenerDirector, url: str, file: IO[bytes], partial: Path, max_bytes: int) -> bool:
    """Append what one connection gives; whether the file is complete then."""
    have = file.seek(0, 2)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            # Everything is here already, or what is here is no part of the file: the hash tells.
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return True
            file.truncate(0)
            return False
    with response:
        if have and not _continues(response, have):
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdecimal() else None
        if total is not None and total > max_bytes:
            raise _too_large(url, max_bytes)
        check_free_space(partial, (total or max_bytes) - have)
        rest = None if total is None else total - have
        with progress(f"fetching {_file_name(url)}", rest) as shown:
            while chunk := response.read(CHUNK_BYTES):
                have += len(chunk)
                if have > max_bytes:
                    raise _too_large(url, max_bytes)
                file.write(chunk)
                shown.advance(len(chunk))
    file.flush()
    return total is None or have == total


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server gives the rest, not the whole once more."""
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and start == str(have)


def _explain(error: Exception, url: str) -> str:
    """The reason of a failure that another try may mend.

    Raises:
        NotFoundError, NetworkError: no further try will.
    """
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
            raise NotFoundError("the server does not have this file", where=_public(url)) from error
        if error.code < 500 and error.code not in (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS):
            raise NetworkError(f"the server refuses: {error.code} {error.reason}", where=_public(url)) from error
        return f"{error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise NetworkError(
            f"the server's certificate is not trusted: {reason.verify_message}",
            where=_public(url),
            hint="name your certificates in PIP_CERT or SSL_CERT_FILE",
        ) from error
    return str(reason) or type(reason).__name__


def _hash(file: IO[bytes]) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _too_large(url: str, max_bytes: int) -> CamelidError:
    return FormatError(f"the file is larger than the {format_bytes(max_bytes)} expected", where=_public(url))


def _public(url: str) -> str:
    """The address without the user's name, password or signature in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]
