"""Real S3 servers as fixtures, each started once a session; a missing one goes by its mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NoReturn

import pytest
import servers
from faultproxy import FaultProxy, fault_proxy
from servers import Link, Server, Toxiproxy
from zygote import Zygote, zygote

MissingPart = Callable[[str, str], NoReturn]
Servers = Callable[[str], Server]


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, missing: MissingPart) -> Iterator[Servers]:
    """Return a function that starts an S3 server by its name, or gives the one that runs."""
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def start(name: str) -> Server:
            if name not in running:
                try:
                    run = servers.server(name, tmp_path_factory.mktemp(name))
                    running[name] = stack.enter_context(run)
                except servers.Missing as error:
                    missing("store", str(error))
            return running[name]

        yield start


@pytest.fixture(params=servers.NAMES)
def server(request: pytest.FixtureRequest, started: Servers) -> Server:
    return started(request.param)


@pytest.fixture
def versitygw(started: Servers) -> Server:
    return started("versitygw")


@pytest.fixture
def bucket(server: Server) -> str:
    return server.bucket()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint) as running:
        yield running


@pytest.fixture(scope="session")
def toxiproxy(
    tmp_path_factory: pytest.TempPathFactory, missing: MissingPart
) -> Iterator[Toxiproxy]:
    with ExitStack() as stack:
        try:
            running = stack.enter_context(servers.toxiproxy(tmp_path_factory.mktemp("toxiproxy")))
        except servers.Missing as error:
            missing("store", str(error))
        yield running


@pytest.fixture(scope="session")
def forks() -> Iterator[Zygote]:
    with zygote() as running:
        yield running


@pytest.fixture
def link(toxiproxy: Toxiproxy, server: Server) -> Iterator[Link]:
    with toxiproxy.link(server.endpoint) as made:
        yield made


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3's chain find the servers' keys, and nothing of the machine's own."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
                 "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
