"""A registry of images in a folder, as much of the OCI distribution spec as push and pull need.

On loopback, where containerd speaks plain HTTP to it; the nodes of this machine reach it there.
"""

from __future__ import annotations

import hashlib
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

CHUNK = 1 << 20
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-f]*)(?:\?digest=(.+))?")
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")


class Registry:
    """Serves from its making until `stop`; what was pushed stays in the folder."""

    def __init__(self, folder: Path) -> None:
        for name in ("blobs", "tags", "uploads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.folder = folder
        handler = type("Handler", (_Handler,), {"folder": folder})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End it, and forget the blobs that no tag leads to."""
        self._server.shutdown()
        self._server.server_close()
        known = "".join(path.read_text() for path in (self.folder / "tags").iterdir())
        known += "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in self._tags())
        for path in (self.folder / "blobs").iterdir():
            if path.name.removeprefix("sha256:") not in known:
                path.unlink()

    def _tags(self) -> list[Path]:
        return list((self.folder / "tags").iterdir())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._read(body=False)

    def do_GET(self) -> None:
        self._read(body=True)

    def _read(self, *, body: bool) -> None:
        if self.path.rstrip("/") == "/v2":
            self._answer(HTTPStatus.OK)
        elif found := _BLOB.fullmatch(self.path):
            self._send(self.folder / "blobs" / found[2], "application/octet-stream", body=body)
        elif found := _MANIFEST.fullmatch(self.path):
            path = self._manifest(*found.groups())
            kind = "application/vnd.oci.image.manifest.v1+json"
            self._send(path, kind, body=body)
        else:
            self._answer(HTTPStatus.NOT_FOUND)

    def _manifest(self, name: str, reference: str) -> Path:
        if reference.startswith("sha256:"):
            return self.folder / "blobs" / reference
        return self.folder / "tags" / f"{name}:{reference}".replace("/", "_")

    def _send(self, path: Path, kind: str, *, body: bool) -> None:
        if not path.is_file():
            self._answer(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(path.stat().st_size))
        if "manifests" in self.path:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.send_header("Docker-Content-Digest", f"sha256:{digest}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                while piece := file.read(CHUNK):
                    self.wfile.write(piece)

    def do_POST(self) -> None:
        found = _UPLOAD.fullmatch(self.path)
        assert found is not None, self.path
        self._body()
        self._answer(HTTPStatus.ACCEPTED, Location=f"/v2/{found[1]}/blobs/uploads/{uuid4().hex}")

    def do_PATCH(self) -> None:
        found = _UPLOAD.fullmatch(self.path)
        assert found is not None, self.path
        path = self.folder / "uploads" / found[2]
        with path.open("ab") as file:
            self._body(file)
        end = path.stat().st_size - 1
        self._answer(HTTPStatus.ACCEPTED, Location=self.path, Range=f"0-{end}")

    def do_PUT(self) -> None:
        if found := _UPLOAD.fullmatch(self.path):
            path = self.folder / "uploads" / found[2]
            with path.open("ab") as file:
                self._body(file)
            path.rename(self.folder / "blobs" / found[3].replace("%3A", ":"))
        elif found := _MANIFEST.fullmatch(self.path):
            tag = self._manifest(*found.groups())
            with tag.open("wb") as file:
                self._body(file)
            body = tag.read_bytes()
            (self.folder / "blobs" / f"sha256:{hashlib.sha256(body).hexdigest()}").write_bytes(body)
        self._answer(HTTPStatus.CREATED, Location=self.path)

    def _body(self, file: Any = None) -> None:
        """Read what the client sends, in chunks or of a known length."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self._copy(size, file)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self._copy(int(self.headers.get("Content-Length", "0")), file)

    def _copy(self, size: int, file: Any) -> None:
        while size:
            piece = self.rfile.read(min(size, CHUNK))
            assert piece, "the client went away"
            size -= len(piece)
            if file is not None:
                file.write(piece)

    def _answer(self, status: HTTPStatus, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
