"""A kubelet that serves logs alone: the real API server passes on to it what users ask for.

It serves as a real one does: the newest file of a log and nothing older, stamped, from whole
seconds on, for as long as the container runs. What pods print is what a test says they do.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jobs import layout
from jobs.console import stamp


@dataclass
class Log:
    """What one container prints: on its node, and copied into the store as jobs/console.py does."""

    copy: Path | None
    """Folder of the copies; none: the pod copies nothing."""
    file: list[tuple[int, bytes]] = field(default_factory=list)
    """Time and text of the lines in the newest file."""
    files: int = 0
    over: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    name: str = ""

    def write(self, *lines: str) -> None:
        now = time.time_ns()
        self.name = self.name or layout.console_name(now)
        with self.changed:
            rows = [(now + at, line.encode()) for at, line in enumerate(lines)]
            self.file += rows
            if self.copy is not None:
                self.copy.mkdir(parents=True, exist_ok=True)
                with (self.copy / f"{self.name}-0000.log").open("ab") as file:
                    file.write(b"".join(b"%b %b\n" % (stamp(when), text) for when, text in rows))
            self.changed.notify_all()

    def rotate(self) -> None:
        with self.changed:
            self.file, self.files = [], self.files + 1

    def end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()


class StubKubelet:
    """The server and the logs it has, by pod."""

    def __init__(self, folder: Path) -> None:
        key, certificate = folder / "stub.key", folder / "stub.crt"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=stub", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        self.logs: dict[str, Log] = {}
        self.requests = 0
        self._open: set[socket.socket] = set()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stub.requests += 1
                stub._open.add(self.connection)
                try:
                    stub.serve(self)
                except OSError:
                    self.close_connection = True
                finally:
                    stub._open.discard(self.connection)

            def log_message(self, *words: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, address: Any) -> None:
                with suppress(OSError):
                    super().finish_request(context.wrap_socket(request, server_side=True), address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def cut(self) -> None:
        """Break every stream, in the middle of a line if there is one."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        log = self.logs.get(parts.path.split("/")[3])
        if log is None:
            request.send_error(404, "no such container")
            return
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        limit = int(query.get("limitBytes", "0"))
        for text in rows(log, query):
            text = text[:limit] if limit else text
            # In two pieces, so that a line is cut where the stream is.
            for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
                request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"")
            if limit:
                break
        request.wfile.write(b"0\r\n\r\n")


def rows(log: Log, query: dict[str, str]) -> Iterator[bytes]:
    since = 0
    if "sinceTime" in query:
        since = int(datetime.fromisoformat(query["sinceTime"]).timestamp()) * 10**9
    at, files, follow = 0, log.files, query.get("follow") == "true"
    while True:
        with log.changed:
            if files != log.files:
                at, files = 0, log.files
            fresh, at = log.file[at:], len(log.file)
        for when, text in fresh:
            if when >= since:
                yield b"%b %b\n" % (stamp(when), text)
        with log.changed:
            if not follow or (log.over and at == len(log.file)):
                return
            if at == len(log.file) and files == log.files:
                log.changed.wait(0.5)


@contextmanager
def stub_kubelet(folder: Path) -> Iterator[StubKubelet]:
    stub = StubKubelet(folder)
    try:
        yield stub
    finally:
        stub.server.shutdown()
        stub.cut()
        stub.server.server_close()
