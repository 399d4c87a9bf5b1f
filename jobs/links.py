"""Owns the wire between two supervisors: JSON lines over TCP, each the newest word on a subject.

A link that is closed or silent is lost, and stays lost. Must not know what is said over it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

BEAT_SECONDS = 1.0
LOST_SECONDS = 30.0
"""How long a side may be silent. For machines that go away without a word; a process that ends,
however, closes its socket, which the other side sees at once."""
MOST_BYTES = 1 << 16
"""Of a message; a stranger must not fill the memory."""
POLL_SECONDS = 0.1


class Link:
    """One end of a connection; a thread of its own keeps it alive and reads."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connected socket."""
        self.told: dict[str, Any] = {}
        """The newest value of each subject that the other side has spoken of."""
        self.why_lost = ""
        self._socket = connection
        self._lock = threading.Lock()
        self.heard = time.monotonic()
        """When the other side last said a word, in monotonic seconds."""
        self.here, self.there = _address(connection.getsockname), _address(connection.getpeername)
        """Addresses of this side and of the other."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(BEAT_SECONDS)
        self._thread = threading.Thread(target=self._serve, name="link", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether nothing will come over it any more."""
        return bool(self.why_lost)

    def tell(self, **subjects: object) -> None:
        """Send a value (JSON) for each subject; on a link that is lost nothing happens."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(subjects).encode() + b"\n")
        except OSError as error:
            self._lose(f"cannot be told anything: {error.strerror or error}")

    def close(self) -> None:
        """Close this end; what was told before still arrives."""
        self._lose("closed here")

    def _lose(self, why: str) -> None:
        self.why_lost = self.why_lost or why
        with contextlib.suppress(OSError):  # wakes the thread
            self._socket.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        """Read until the link is lost; say a word each BEAT_SECONDS."""
        begun, beaten = b"", 0.0
        while not self.lost:
            if time.monotonic() - beaten >= BEAT_SECONDS:
                beaten = time.monotonic()
                self.tell()
            try:
                found = self._socket.recv(MOST_BYTES)
            except TimeoutError:
                if time.monotonic() - self.heard > LOST_SECONDS:
                    self._lose(f"silent for {LOST_SECONDS:.0f} s")
                continue
            except OSError as error:
                self._lose(error.strerror or str(error))
                break
            if not found:
                self._lose("its connection was closed")
                break
            self.heard = time.monotonic()
            *lines, begun = (begun + found).split(b"\n")
            try:
                for line in lines:
                    self._hear(json.loads(line))
            except (ValueError, RecursionError):
                self._lose("does not speak our language")
            if len(begun) > MOST_BYTES:
                self._lose("does not end its message")
        self._socket.close()

    def _hear(self, message: object) -> None:
        if not isinstance(message, Mapping):
            raise ValueError(message)
        self.told.update(message)


def _address(ask: Callable[[], Any]) -> str:
    with contextlib.suppress(OSError):  # gone already
        return str(ask()[0])
    return ""


def connect(host: str, port: int, seconds: float) -> Link:
    """Return a link to a listener; its name is resolved anew each time.

    Raises:
        OSError: there is no such name (yet), or nobody listens there.
    """
    # IPv4, as msrun: MindSpore's group does not speak IPv6.
    found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(found[0][4])
    except OSError:
        connection.close()
        raise
    return Link(connection)


class Listener:
    """A port of this machine, and the links that others have made to it."""

    def __init__(self, port: int) -> None:
        """Listen on all addresses; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._socket = socket.create_server(("0.0.0.0", port))  # noqa: S104  # peers are elsewhere
        self.port = int(self._socket.getsockname()[1])
        self._socket.settimeout(POLL_SECONDS)
        self._links: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._thread.start()

    def take(self) -> list[Link]:
        """Return the links made since the last time, and forget them."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._links.get_nowait())
        return found

    def close(self) -> None:
        """Listen no more; links that were taken live on."""
        self._closed = True
        self._thread.join()
        for link in self.take():
            link.close()
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:  # one that was gone before it was taken; no descriptor left
                time.sleep(POLL_SECONDS)
                continue
            self._links.put(Link(connection))
