"""An HTTP proxy in front of an S3 server that fails by schedule and counts what it passes on.

It forwards requests as they are signed, Host included. Must not know our code, nor keep an object.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

from faults import Fault, Passed

BLOCK = 1 << 16
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class FaultProxy:
    """Its schedule, and what went through it; `endpoint` stands for the server behind it."""

    def __init__(self, upstream: str, endpoint: str) -> None:
        self.upstream = upstream
        self.endpoint = endpoint
        self.faults: list[Fault] = []
        self.requests: list[Passed] = []
        self.after: Callable[[Passed], None] = lambda _: None
        """Called when a request has been answered by the server and before the client knows."""
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def begin(self, method: str, key: str, query: str) -> tuple[Passed, Fault | None]:
        """Count a request; return its record and the first fault that is due."""
        with self._lock:
            due = None
            for fault in self.faults:
                if fault.matches(method, key, query):
                    fault.seen += 1
                    if due is None and fault.first <= fault.seen < fault.first + fault.times:
                        due = fault
            passed = Passed(method, key, query, due.kind if due else "")
            self.requests.append(passed)
            return passed, due

    def sent(self, method: str = "PUT", key: str = "", part: int | None = None) -> int:
        """Return how many bytes of such requests' bodies were passed on."""
        return sum(row.sent for row in self.found(method, key, part))

    def found(self, method: str = "", key: str = "", part: int | None = None) -> list[Passed]:
        """Return the requests of a method (empty: any) whose key has `key` in it."""
        with self._lock:
            return [
                row
                for row in self.requests
                if method in ("", row.method) and key in row.key and part in (None, row.part)
            ]

    def forget(self) -> None:
        """Forget schedule and requests."""
        with self._lock:
            self.faults, self.requests = [], []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client went away, or the server did
            self.close_connection = True

    def serve(self) -> None:
        target = urlsplit(self.path)
        passed, fault = self.proxy.begin(self.command, unquote(target.path), target.query)
        passed.headers = {name.lower(): value for name, value in self.headers.items()}
        kind = fault.kind if fault else ""
        if fault and kind == "delay":
            self.proxy.closing.wait(fault.seconds)
        if fault and kind in ("answer", "swallow", "close", "hang"):
            self._refuse(fault, passed)
            return
        try:
            answer = self._pass_on(passed, kind)
        except (OSError, HTTPException):
            answer = None
        if answer is None:
            self.close_connection = True
            return
        whole = answer.read() if kind in ("lose", "behead") else b""
        self.proxy.after(passed)
        if fault and kind == "behead":
            lines = [f"HTTP/1.1 {answer.status} OK", *(f"{k}: {v}" for k, v in answer.getheaders())]
            self.wfile.write(("\r\n".join(lines).encode() + b"\r\n\r\n" + whole)[: fault.at])
        if kind in ("lose", "behead"):
            self.close_connection = True
            return
        passed.status = answer.status
        self._give_back(answer, kind, passed)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> Iterator[bytes]:
        """Yield the request's body in blocks, without the framing of chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            block = self.rfile.read1(min(left, BLOCK))
            if not block:
                raise ConnectionAbortedError("the client stopped in the middle of a body")
            left -= len(block)
            yield block

    def _refuse(self, fault: Fault, passed: Passed) -> None:
        digest = hashlib.md5()
        for block in self._body():
            digest.update(block)
        if fault.kind == "hang":
            self.proxy.closing.wait(fault.seconds)
        if fault.kind in ("close", "hang"):
            self.close_connection = True
            return
        headers, body = dict(fault.headers), fault.body
        if fault.kind == "swallow":
            passed.status = 200
            headers["ETag"] = f'"{digest.hexdigest()}"'
            for name, value in self.headers.items():
                if name.lower().startswith("x-amz-checksum-"):
                    headers[name] = value
        else:
            passed.status = fault.status
            if body is None:
                body = _error(fault.code, passed.key) if fault.code else b"<html>no</html>"
        self._send(passed.status, headers, body or b"")

    def _pass_on(self, passed: Passed, kind: str) -> HTTPResponse | None:
        target = urlsplit(self.path)
        # As a forward proxy it is asked for a whole URL; the server wants its path alone.
        path = target.path + (f"?{target.query}" if target.query else "")
        upstream = HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
        upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                upstream.putheader(name, value)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        if chunked:
            upstream.putheader("Transfer-Encoding", "chunked")
        upstream.endheaders()
        half = int(self.headers.get("Content-Length") or 0) // 2
        for block in self._body():
            piece = block
            if kind == "corrupt" and passed.sent <= half < passed.sent + len(block):
                piece = _flip(block, half - passed.sent)
            if kind == "cut":
                piece = block[: half - passed.sent]
            upstream.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            passed.sent += len(piece)
            if kind == "cut" and passed.sent >= half:
                upstream.close()
                return None
        if chunked:
            upstream.send(b"0\r\n\r\n")
        return upstream.getresponse()

    def _give_back(self, answer: HTTPResponse, kind: str, passed: Passed) -> None:
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP}
        if self.command == "HEAD" or answer.status in (204, 304):
            self._send(answer.status, headers, None)
            return
        if answer.length is None:  # chunks: an answer short enough to be held
            self._send(answer.status, headers, _flip(answer.read(), 0, on=kind == "wrong"))
            return
        size = answer.length
        self._send(answer.status, headers, None)
        at = 0
        while block := answer.read(BLOCK):
            piece = block
            if kind == "wrong" and at <= size // 2 < at + len(block):
                piece = _flip(block, size // 2 - at)
            if kind == "truncate":
                piece = block[: max(size // 2 - at, 0)]
            self.wfile.write(piece)
            passed.received += len(piece)
            at += len(block)
            if kind == "truncate" and at >= size // 2:
                break
        if at < size or kind == "truncate":  # the server's own end was early, or ours
            self.close_connection = True

    def _send(self, status: int, headers: dict[str, str], body: bytes | None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if body is None or name.lower() != "content-length":
                self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)


def _flip(block: bytes, at: int, *, on: bool = True) -> bytes:
    if not on or not block:
        return block
    return block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]


def _error(code: str, key: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{code}, says the proxy</Message>"
        f"<Resource>{escape(key)}</Resource><RequestId>1</RequestId></Error>"
    ).encode()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy without faults in front of a server's URL, on a free port of loopback."""
    listener = _Listener(("127.0.0.1", 0), _Handler)
    proxy = FaultProxy(upstream, f"http://127.0.0.1:{listener.server_address[1]}")
    listener.RequestHandlerClass = type("Handler", (_Handler,), {"proxy": proxy})
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
