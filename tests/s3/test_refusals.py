"""What a store refuses for good: one line with endpoint, bucket, key and the fix, no secret."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from faultproxy import fault_proxy
from faults import Passed
from refusals import refused
from servers import Server

from jobs import s3faults
from jobs.access import Access
from jobs.s3 import S3Store
from jobs.stores import Refused

pytestmark = pytest.mark.store

PART = 5 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3faults, "FIRST_WAIT", 0.01)


def test_a_bucket_that_is_not_there(server: Server) -> None:
    store = S3Store("no-such-bucket", "p", Access(endpoint=server.endpoint))
    refused(store, "run/a key", "no such bucket", "create")
    refused(store, "no such bucket", ask=lambda s: list(s.list("run/")))
    refused(store, "run/k", "no such bucket", ask=lambda s: s.read("run/k"))
    refused(store, "run/k", "no such bucket", ask=lambda s: s.delete("run/k"))
    refused(store, "no such bucket", ask=lambda s: s.swap("run/k", None, b"1"))
    refused(store, "no such bucket", ask=lambda s: s.unfinished(""))


def test_a_wrong_secret(server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "not-the-secret-and-not-to-be-told"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", other)
    store = S3Store(bucket, "", Access(endpoint=server.endpoint))
    assert other not in refused(store, "run/a key", "SignatureDoesNotMatch", "secret")
    refused(store, "SignatureDoesNotMatch", ask=lambda s: s.read("k"))
    refused(store, "SignatureDoesNotMatch", ask=lambda s: list(s.list("")))


def test_an_access_key_nobody_knows(
    server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    store = S3Store(bucket, "", Access(endpoint=server.endpoint))
    refused(store, "run/a key", "access key")
    # versitygw answers 404 here, which must not be taken for a missing object.
    refused(store, "access key", ask=lambda s: s.read("k"))


def test_no_keys_at_all(server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = S3Store(bucket, "", Access(endpoint=server.endpoint))
    refused(store, "run/a key", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_half_a_pair_of_keys(server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(S3Store(bucket, "", Access(endpoint=server.endpoint)), "AWS_SECRET_ACCESS_KEY")


def test_a_profile_that_is_not_there(
    server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused(S3Store(bucket, "", Access(endpoint=server.endpoint)), "nobody")


@dataclass(frozen=True)
class User:
    """A user of versitygw who owns nothing: what a bucket's policy allows is all they may do."""

    access_key: str
    secret_key: str


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, str], object]
) -> Iterator[Server]:
    """A versitygw with users."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "users").mkdir()
    try:
        with servers.server("versitygw", folder, "--iam-dir", str(folder / "users")) as running:
            yield running
    except servers.Missing as error:
        missing("store", str(error))


@pytest.fixture
def user(guarded: Server, monkeypatch: pytest.MonkeyPatch) -> User:
    made = User(f"user{os.urandom(4).hex()}", "the-secret-of-a-user")
    command = [
        servers.asset("versitygw"), "admin", "--access", guarded.access_key,
        "--secret", guarded.secret_key, "--endpoint-url", guarded.endpoint,
        "create-user", "--access", made.access_key, "--secret", made.secret_key, "--role", "user",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made.secret_key)
    return made


def allowing(server: Server, user: User, *actions: str) -> str:
    """Return a bucket in which the user may do just that."""
    bucket = server.bucket()
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [user.access_key]},
        "Action": [f"s3:{action}" for action in actions],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    server.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    return bucket


READS = ("GetObject", "ListBucket")
WRITES = ("PutObject", "AbortMultipartUpload", "ListMultipartUploadParts",
          "ListBucketMultipartUploads")  # fmt: skip


def test_reading_without_writing(guarded: Server, user: User, tmp_path: Path) -> None:
    bucket = allowing(guarded, user, *READS)
    guarded.client().put_object(Bucket=bucket, Key="p/k", Body=b"1")
    access = Access(endpoint=guarded.endpoint)
    store = S3Store(bucket, "p", access, tmp_path / "scratch", part_bytes=PART)
    assert store.read("k") == b"1"
    assert [entry.key for entry in store.list("")] == ["k"]
    text = refused(store, "p/run/a key", "AccessDenied")
    assert user.secret_key not in text
    refused(store, "swapped", "AccessDenied", ask=lambda s: s.swap("swapped", None, b"1"))
    (tmp_path / "big").write_bytes(bytes(PART + 1))
    refused(store, "big", "AccessDenied", ask=lambda s: s.put("big", tmp_path / "big"))


def test_writing_without_deleting(guarded: Server, user: User) -> None:
    bucket = allowing(guarded, user, *READS, *WRITES)
    store = S3Store(bucket, "p", Access(endpoint=guarded.endpoint))
    store.write("k", b"1")
    refused(store, "p/k", "AccessDenied", ask=lambda s: s.delete("k"))
    assert store.read("k") == b"1"


def test_nothing_at_all(guarded: Server, user: User, tmp_path: Path) -> None:
    bucket = allowing(guarded, user, "GetBucketLocation")
    store = S3Store(bucket, "p", Access(endpoint=guarded.endpoint))
    for ask in (
        lambda s: s.read("k"),
        lambda s: s.get("k", tmp_path / "there" / "k"),
        lambda s: list(s.list("")),
        lambda s: s.sha256("k"),
    ):
        refused(store, "AccessDenied", ask=ask)
    assert not list((tmp_path / "there").glob("*"))


def test_a_locked_object(guarded: Server, tmp_path: Path) -> None:
    client = guarded.client()
    bucket = f"locked-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    client.put_object(
        Bucket=bucket, Key="k", Body=b"1", ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=until,
    )  # fmt: skip
    store = S3Store(bucket, "", Access(endpoint=guarded.endpoint))
    refused(store, "/k", "lock", ask=lambda s: s.delete("k"))
    refused(store, "/k", "lock", ask=lambda s: s.write("k", b"2"))
    assert store.read("k") == b"1"


def test_a_server_that_only_reads(tmp_path: Path, missing: Callable[[str, str], object]) -> None:
    try:
        with servers.server("versitygw", tmp_path) as first:
            bucket = first.bucket()
        with servers.server("versitygw", tmp_path, "--readonly") as running:
            store = S3Store(bucket, "", Access(endpoint=running.endpoint))
            refused(store, "run/a key", "AccessDenied")
            assert list(store.list("")) == []
    except servers.Missing as error:
        missing("store", str(error))


def test_a_file_that_changes_while_it_is_read(server: Server, bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(3 * PART))
    with fault_proxy(server.endpoint) as proxy:
        store = S3Store(bucket, "", Access(endpoint=proxy.endpoint), part_bytes=PART)

        def change(passed: Passed) -> None:
            if passed.part == 2:
                path.write_bytes(os.urandom(3 * PART))

        proxy.after = change
        with pytest.raises(Refused, match="changed while it was read") as caught:
            store.put("f", path)
        assert str(path) in str(caught.value)
    assert "Contents" not in server.client().list_objects_v2(Bucket=bucket)


def test_a_full_disk_while_fetching(
    server: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    data = os.urandom(2 * PART)
    (tmp_path / "f").write_bytes(data)
    store = S3Store(bucket, "", Access(endpoint=server.endpoint), part_bytes=PART)
    digest = store.put("f", tmp_path / "f").sha256
    real = os.write

    def full(handle: int, piece: bytes) -> int:
        if os.fstat(handle).st_size > PART:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, piece)

    monkeypatch.setattr(os, "write", full)
    started = time.monotonic()
    with pytest.raises(OSError) as caught:
        store.get("f", tmp_path / "there" / "f")
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, FileNotFoundError)
    assert time.monotonic() - started < 5
    assert not (tmp_path / "there" / "f").exists()
    monkeypatch.setattr(os, "write", real)
    assert store.get("f", tmp_path / "there" / "f") == digest
