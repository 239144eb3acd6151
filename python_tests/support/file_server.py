"""A real HTTP server of files that understands ranges and fails as it is told."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class FileServer:
    """Files by their path, and what goes wrong.

    Attributes:
        files: contents by path, such as "/a.zip".
        breaks: the numbers of bytes after which the next responses end too early, one for each response.
        statuses: the status codes of the next responses.
        stalls: seconds of silence before the content of every response.
        has_ranges, has_length, has_etag: whether responses have these.
        redirects: other addresses by path.
        requests: (path, Range, If-Range) of all requests.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.stalls = 0.0
        self.has_ranges = self.has_length = self.has_etag = True
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.address = ""

    def url(self, path: str) -> str:
        return self.address + path


class _Handler(BaseHTTPRequestHandler):
    control: FileServer

    def do_GET(self) -> None:
        control, wanted = self.control, self.headers.get("Range")
        control.requests.append((self.path, wanted, self.headers.get("If-Range")))
        if control.statuses:
            self.send_error(control.statuses.pop(0))
            return
        if self.path in control.redirects:
            self.send_response(302)
            self.send_header("Location", control.redirects[self.path])
            self.end_headers()
            return
        if self.path not in control.files:
            self.send_error(404)
            return
        content = control.files[self.path]
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        if control.has_ranges and wanted and self.headers.get("If-Range") in (None, etag):
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert found
            start = int(found[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if control.has_length:
            self.send_header("Content-Length", str(len(content) - start))
        if control.has_etag:
            self.send_header("ETag", etag)
        self.end_headers()
        time.sleep(control.stalls)
        end = start + control.breaks.pop(0) if control.breaks else len(content)
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_files() -> Iterator[FileServer]:
    """A server on a free port of this machine."""
    control = FileServer()
    handler = type("Handler", (_Handler,), {"control": control})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    control.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield control
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
