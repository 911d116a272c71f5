"""A server on loopback that plays hub, archive and mirror, and misbehaves when asked to."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

CHUNK = 1 << 14


@dataclass
class Files:
    """What is served by path, what goes wrong, and what was asked for.

    ``faults`` of a path are used up one a request: a status, ``cut`` (the connection ends in the middle), ``other``
    (other bytes of the same length), or ``slow``. ``moved`` are redirections.
    """

    address: str
    content: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Any]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    more: dict[str, dict[str, str]] = field(default_factory=dict)  # headers by path
    tags: bool = True  # whether answers have an ETag
    ranges: bool = True
    pause: float = 0.0  # seconds before each chunk, always
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def put(self, prefix: str, directory: Path) -> None:
        for path in directory.rglob("*"):
            if path.is_file():
                self.content[f"{prefix}/{path.relative_to(directory).as_posix()}"] = path.read_bytes()

    def times(self, path: str) -> int:
        return sum(one == path for one, _ in self.asked)


@contextmanager
def serving(certificate: Path | None = None, key: Path | None = None) -> Iterator[Files]:
    """A server for the block; with a certificate it speaks https."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path, errors="strict") if self.path not in files.content else self.path
            files.asked.append((path, {key.lower(): value for key, value in self.headers.items()}))
            fault = files.faults[path].pop(0) if files.faults.get(path) else None
            if isinstance(fault, int):
                return self.empty(fault)
            if path in files.moved:
                return self.empty(302, {"Location": files.moved[path], **files.more.get(path, {})})
            if path not in files.content:
                return self.empty(404)
            return self.send(path, fault)

        def empty(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, path: str, fault: Any) -> None:
            content = files.content[path]
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            if fault == "other":
                content = bytes(255 - byte for byte in content)
            wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) if files.ranges else None
            same = self.headers.get("If-Range") in (None, tag)
            start = int(wanted[1]) if wanted and same else 0
            self.send_response(206 if wanted and same else 200)
            if wanted and same:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if files.tags:
                self.send_header("ETag", tag)
            for key, value in files.more.get(path, {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = (start + len(content)) // 2 if fault == "cut" else len(content)
            for place in range(start, end, CHUNK):
                time.sleep(max(files.pause, 0.01 if fault == "slow" else 0.0))
                self.wfile.write(content[place : min(place + CHUNK, end)])
            if fault == "cut":
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that is gone is no error."""

    server = Server(("127.0.0.1", 0), Handler)
    files = Files(f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}")
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
