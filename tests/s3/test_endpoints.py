"""Endpoints that are wrong or odd: nobody there, elsewhere, not S3, TLS, another clock."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import subprocess
from collections.abc import Callable
from email.utils import format_datetime
from pathlib import Path

import botocore.auth
import pytest
import servers
from faultproxy import FaultProxy
from faults import EVER, Fault
from refusals import refused
from servers import Server

from jobs import s3faults
from jobs.access import Access
from jobs.errors import BadSpec
from jobs.s3 import S3Store
from jobs.stores import Conflict, Refused, open_store

pytestmark = pytest.mark.store

PART = 5 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3faults, "FIRST_WAIT", 0.01)


def test_nobody_listens() -> None:
    endpoint = f"http://127.0.0.1:{servers.free_port()}"
    store = S3Store("bucket", "p", Access(endpoint=endpoint))
    with pytest.raises(OSError, match="Could not connect") as caught:
        store.write("run/k", b"x")
    assert not isinstance(caught.value, Refused | FileNotFoundError)  # it may come up
    for word in (endpoint, "bucket", "run/k"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:9000", "http://", "http://a b", "ftp://x", "http:/x"]
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    # By what opens the store or by its first use: as a setting, not as an outage.
    def use() -> None:
        open_store("s3://bucket/p", Access(endpoint=endpoint)).write("run/k", b"x")

    with pytest.raises((Refused, BadSpec), match="endpoint") as caught:
        use()
    assert endpoint in str(caught.value)


def test_a_host_that_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store("bucket", "p", Access(endpoint="http://no-such-host.invalid"))
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        store.write("run/k", b"x")


@pytest.mark.parametrize(("status", "code"), [
    (301, "PermanentRedirect"), (307, "TemporaryRedirect"), (302, ""), (308, ""),
])  # fmt: skip
def test_an_endpoint_that_sends_elsewhere(
    server: Server, bucket: str, proxy: FaultProxy, status: int, code: str
) -> None:
    there = "http://s3.other.example/x"
    proxy.faults = [
        Fault("answer", status=status, code=code, headers={"Location": there}, times=EVER)
    ]
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint))
    refused(store, "run/a key", there, "endpoint")
    refused(store, there, ask=lambda s: s.read("k"))
    refused(store, there, ask=lambda s: list(s.list("")))


def test_a_bucket_of_another_region(server: Server, bucket: str, proxy: FaultProxy) -> None:
    headers = {"x-amz-bucket-region": "eu-north-7"}
    proxy.faults = [
        Fault("answer", status=301, code="PermanentRedirect", headers=headers, times=EVER)
    ]
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint))
    refused(store, "run/a key", "eu-north-7", "region")


def test_a_region_that_is_another(server: Server, bucket: str, proxy: FaultProxy) -> None:
    body = (
        b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is "
        b"wrong; expecting 'eu-north-7'</Message><Region>eu-north-7</Region></Error>"
    )
    proxy.faults = [Fault("answer", status=400, body=body, times=EVER)]
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint, region="us-east-1"))
    refused(store, "run/a key", "eu-north-7", "region")


WEB_PAGE = b"<!DOCTYPE html><html><body>Welcome</body></html>"


def test_a_web_server_that_knows_no_such_page(
    server: Server, bucket: str, proxy: FaultProxy
) -> None:
    proxy.faults = [Fault("answer", status=404, body=WEB_PAGE, times=EVER)]
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint))
    refused(store, "run/a key", "404")
    refused(store, "404", ask=lambda s: list(s.list("")))


def test_a_web_server_that_is_content_with_anything(
    server: Server, bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults = [Fault("answer", status=200, body=WEB_PAGE, times=EVER)]
    (tmp_path / "big").write_bytes(bytes(PART + 1))
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint), part_bytes=PART)
    for ask in (
        lambda: store.write("run/a key", b"x"),
        lambda: store.put("big", tmp_path / "big"),
        lambda: list(store.list("")),
        lambda: store.unfinished(""),
        lambda: store.swap("claim", None, b"x"),
    ):
        with pytest.raises((OSError, Conflict)) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_an_answer_that_ends_at_any_byte_is_never_believed(
    server: Server, bucket: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3faults.retrying, "__defaults__", (1,))  # attempts
    kept = bytes(range(256)) * 2
    (tmp_path / "big").write_bytes(bytes(PART + 1))
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint), part_bytes=PART)
    store.write("kept", kept)
    asked: dict[str, Callable[[], object]] = {
        "read": lambda: store.read("kept") == kept,
        "sha256": lambda: store.sha256("kept") == hashlib.sha256(kept).hexdigest(),
        "get": lambda: store.get("kept", tmp_path / "g") and (tmp_path / "g").read_bytes() == kept,
        "list": lambda: [entry.key for entry in store.list("k")] == ["kept"],
        "write": lambda: store.write("new", b"new").size == 3,
        "begin": lambda: store.put("big", tmp_path / "big").size == PART + 1,
    }
    believed, wrong = [], []
    for name, ask in asked.items():
        for at in range(0, 2200, 101 if name == "begin" else 23):
            proxy.faults = [Fault("behead", "POST" if name == "begin" else "", at=at, times=EVER)]
            try:
                right = ask()
            except (Refused, FileNotFoundError) as error:
                wrong.append((name, at, repr(error)))
            except OSError:
                continue
            else:
                believed.append(name)
                if not right:
                    wrong.append((name, at, "believed"))
    assert wrong == []
    assert {"read", "sha256", "get", "list", "write"} <= set(believed)  # at last it was whole


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, missing: Callable[..., object]) -> Path:
    """A folder with key.pem and cert.pem, signed by itself, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout",
               "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1", "-addext",
               "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        missing("store", "openssl is needed for a certificate")
    return folder


@pytest.mark.parametrize("name", servers.NAMES)
def test_a_certificate_that_signed_itself(
    name: str, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch,
    missing: Callable[[str, str], object],
) -> None:  # fmt: skip
    flags = [f"--cert={certificate / 'cert.pem'}", f"--key={certificate / 'key.pem'}"]
    try:
        with servers.server(name, tmp_path, *flags) as running:
            (running.root / "bucket").mkdir()
            endpoint = running.endpoint.replace("http://", "https://")
            refused(
                S3Store("bucket", "", Access(endpoint=endpoint)),
                "run/a key", "certificate", "AWS_CA_BUNDLE",
            )  # fmt: skip
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate / "cert.pem"))
            store = S3Store("bucket", "", Access(endpoint=endpoint), part_bytes=PART)
            store.write("k", b"1")
            assert store.read("k") == b"1"
            (tmp_path / "big").write_bytes(os.urandom(2 * PART + 1))
            digest = store.put("big", tmp_path / "big").sha256
            assert store.get("big", tmp_path / "back") == digest == store.sha256("big")
            monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nothing"))
            refused(S3Store("bucket", "", Access(endpoint=endpoint)), "nothing")
    except servers.Missing as error:
        missing("store", str(error))


def test_http_spoken_to_a_server_that_speaks_https(
    tmp_path: Path, certificate: Path, missing: Callable[[str, str], object]
) -> None:
    try:
        flags = [f"--cert={certificate / 'cert.pem'}", f"--key={certificate / 'key.pem'}"]
        with servers.server("rclone", tmp_path, *flags) as running:
            endpoint = running.endpoint.replace("https://", "http://")
            with pytest.raises(OSError, match="run/k") as caught:
                S3Store("bucket", "", Access(endpoint=endpoint)).write("run/k", b"1")
            assert "\n" not in str(caught.value)
    except servers.Missing as error:
        missing("store", str(error))


def test_https_spoken_to_a_server_that_speaks_http(server: Server, bucket: str) -> None:
    endpoint = server.endpoint.replace("http://", "https://")
    with pytest.raises(OSError, match="run/k") as caught:
        S3Store(bucket, "", Access(endpoint=endpoint)).write("run/k", b"1")
    assert "\n" not in str(caught.value)


def test_a_clock_that_is_wrong_is_followed(
    server: Server, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that what the store does to the signer ends with this test.
    monkeypatch.setattr(botocore.auth, "get_current_datetime", botocore.auth.get_current_datetime)
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    proxy.faults = [
        Fault("answer", status=403, code="RequestTimeTooSkewed",
              headers={"Date": format_datetime(ahead, usegmt=True)}),
        Fault("answer", first=2, status=403, code="RequestTimeTooSkewed",
              headers={"Date": format_datetime(dt.datetime.now(dt.UTC), usegmt=True)}),
    ]  # fmt: skip
    store = S3Store(bucket, "", Access(endpoint=proxy.endpoint))
    store.write("k", b"1")
    assert store.read("k") == b"1"
    sent = [row.headers["x-amz-date"] for row in proxy.requests]
    dates = [dt.datetime.strptime(text, "%Y%m%dT%H%M%S%z") for text in sent]
    assert len(dates) == 4
    assert abs(dates[1] - ahead) < dt.timedelta(minutes=1)
    assert abs(dates[2] - dates[0]) < dt.timedelta(minutes=1)
