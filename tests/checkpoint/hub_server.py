"""A stand-in for the Hugging Face hub on the loopback interface: what huggingface_hub asks for, and its refusals."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOKEN = "hf_right"


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked for."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Repository → revision → file → content."""
    gated: set[str] = field(default_factory=set)
    """Repositories for those with the token."""
    cuts: dict[str, int] = field(default_factory=dict)
    """File → bytes after which its next download breaks off."""
    url: str = ""
    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """File and Range header of every download so far."""

    def commit(self, repository: str, revision: str) -> str:
        """The commit that a branch, a tag or a commit means."""
        revisions = self.repositories[repository]
        commits = {name: hashlib.sha1(f"{repository}{name}".encode()).hexdigest() for name in revisions}
        return next(commit for name, commit in commits.items() if revision in (name, commit))

    def files(self, repository: str, commit: str) -> Mapping[str, bytes]:
        revisions = self.repositories[repository]
        return next(files for name, files in revisions.items() if self.commit(repository, name) == commit)


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET(head=True)

        def do_GET(self, *, head: bool = False) -> None:
            path = unquote(urlsplit(self.path).path)
            info = re.fullmatch(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(revision|tree)/(?P<rev>[^/]+))?", path)
            file = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)", path)
            asked = info or file
            if asked is None or asked["repo"] not in hub.repositories:
                self._refuse(404, "RepoNotFound")
                return
            repository, revision = asked["repo"], asked["rev"] or "main"
            if repository in hub.gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._refuse(403, "GatedRepo")
                return
            try:
                commit = hub.commit(repository, revision)
            except StopIteration:
                self._refuse(404, "RevisionNotFound")
                return
            files = hub.files(repository, commit)
            if file is None:
                tree = "/tree/" in path
                listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
                siblings = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                self._answer(json.dumps(listed if tree else siblings).encode(), {"Content-Type": "application/json"})
            elif file["file"] not in files:
                self._refuse(404, "EntryNotFound")
            else:
                self._file(file["file"], files[file["file"]], commit, head)

        def _file(self, name: str, content: bytes, commit: str, head: bool) -> None:
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
            if head:
                self._answer(content, headers, head=True)
                return
            wanted = self.headers["Range"]
            hub.downloads.append((name, wanted))
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            cut = hub.cuts.pop(name, None)
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(content[start:], headers, status=206 if start else 200, cut=cut)

        def _answer(
            self,
            body: bytes,
            headers: Mapping[str, str],
            *,
            status: int = 200,
            head: bool = False,
            cut: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if not head:
                self.wfile.write(body[:cut])
            self.close_connection = True

        def _refuse(self, status: int, code: str) -> None:
            self._answer(b"", {"X-Error-Code": code, "X-Error-Message": "no"}, status=status)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
