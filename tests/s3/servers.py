"""Real S3 servers for the tests, and toxiproxy: started on loopback, waited for, ended.

Must not know our code: what is told here holds for any client. Only what was started is ended.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS_KEY = "testaccess"
SECRET_KEY = "a-secret-that-no-message-may-hold"
REGION = "us-east-1"
"""What versitygw takes for its own; rclone takes any."""
NAMES = ("versitygw", "rclone")
START_SECONDS = 30


class Missing(Exception):
    """A program that a test needs is not on this machine."""


@dataclass(frozen=True)
class Server:
    """An S3 server and how to speak to it; `root` holds its buckets as folders."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    root: Path
    log: Path

    def client(self, endpoint: str = "", **config: object) -> Any:
        """Return a plain boto3 client that tries once, to it or by way of `endpoint`."""
        return _client(self, endpoint or self.endpoint, tuple(sorted(config.items())))

    def bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@functools.cache  # one takes a tenth of a second
def _client(server: Server, endpoint: str, config: tuple[tuple[str, object], ...]) -> Any:
    import boto3
    from botocore.config import Config

    options: dict[str, object] = {
        "s3": {"addressing_style": "path"},
        "retries": {"total_max_attempts": 1},
        "connect_timeout": 5,
        "read_timeout": 20,
        "max_pool_connections": 50,
    }
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=REGION,
        config=Config(**{**options, **dict(config)}),
    )


def asset(name: str) -> Path:
    """Return a program of KUBEBUILDER_ASSETS.

    Raises:
        Missing: it is not there.
    """
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    path = Path(folder) / name
    if not folder or not path.exists():
        raise Missing(f"KUBEBUILDER_ASSETS={folder} has no {name}")
    return path


def rclone() -> Path:
    """Return rclone, from this virtual environment or the PATH.

    Raises:
        Missing: it is not there.
    """
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if not found:
        raise Missing("no rclone beside the interpreter nor on the PATH (the [dev] extra has it)")
    return Path(found)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(
    command: list[object], log: Path, port: int, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; it accepts connections at `port` when the block begins."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(variables or {})},
        )
    try:
        _wait_for(child, port, log)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_for(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    tail = log.read_text(errors="replace")[-2000:]
    raise AssertionError(f"{child.args!r} did not come up:\n{tail}")


@contextmanager
def server(name: str, folder: Path, *flags: str) -> Iterator[Server]:
    """Run the S3 server `name` over an empty folder; `flags` are versitygw's or rclone's own.

    Raises:
        Missing: its program is not on this machine.
    """
    root, log, port = folder / "buckets", folder / f"{name}.log", free_port()
    root.mkdir(parents=True, exist_ok=True)
    scheme = "https" if "--cert" in flags else "http"
    at = f"127.0.0.1:{port}"
    command: list[object]
    if name == "versitygw":
        command = [asset("versitygw"), "--port", at, "--region", REGION, "--keep-alive"]
        command += [*flags, "posix", root]
        variables = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    else:
        command = [rclone(), "serve", "s3", "--addr", at, *flags, root]
        # Not as a flag, which everyone on the machine may read.
        variables = {
            "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"',
            "RCLONE_CONFIG": str(folder / "rclone.conf"),
        }
    with process(command, log, port, variables):
        yield Server(name, f"{scheme}://{at}", ACCESS_KEY, SECRET_KEY, root, log)


@dataclass(frozen=True)
class Toxiproxy:
    """A running toxiproxy, steered over its HTTP API."""

    api: str

    def call(self, method: str, path: str, document: object = None) -> Any:
        """Send one request to the API and return its JSON."""
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.api + path, body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"toxiproxy: {error.read().decode()}") from error

    @contextmanager
    def link(self, upstream: str) -> Iterator[Link]:
        """Yield a TCP link to an address, HOST:PORT or a URL, without faults at first."""
        name, address = secrets.token_hex(4), f"127.0.0.1:{free_port()}"
        document = {"name": name, "listen": address, "upstream": upstream.split("//")[-1]}
        self.call("POST", "/proxies", document)
        try:
            yield Link(self, name, f"http://{address}")
        finally:
            self.call("DELETE", f"/proxies/{name}")


@dataclass(frozen=True)
class Link:
    """One TCP link of toxiproxy; `endpoint` stands for what is behind it."""

    toxiproxy: Toxiproxy
    name: str
    endpoint: str

    def add(self, kind: str, stream: str = "downstream", **attributes: int) -> None:
        """Add a fault to all connections, `downstream` towards the client, units as toxiproxy's."""
        document = {"name": f"{kind}-{stream}", "type": kind, "stream": stream}
        self.toxiproxy.call(
            "POST", f"/proxies/{self.name}/toxics", {**document, "attributes": attributes}
        )

    def clear(self) -> None:
        """Take all faults away."""
        for toxic in self.toxiproxy.call("GET", f"/proxies/{self.name}/toxics"):
            self.toxiproxy.call("DELETE", f"/proxies/{self.name}/toxics/{toxic['name']}")

    def enable(self, *, on: bool) -> None:
        """Take the link up or down; down, nobody listens and open connections end."""
        self.toxiproxy.call("POST", f"/proxies/{self.name}", {"enabled": on})


@contextmanager
def toxiproxy(folder: Path) -> Iterator[Toxiproxy]:
    """Run toxiproxy.

    Raises:
        Missing: its program is not on this machine.
    """
    port = free_port()
    command: list[object] = [asset("toxiproxy-server"), "-host", "127.0.0.1", "-port", port]
    with process(command, folder / "toxiproxy.log", port):
        yield Toxiproxy(f"http://127.0.0.1:{port}")
