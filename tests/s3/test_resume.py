"""A killed uploader sends only what the server does not have; counted on the way there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from servers import Link, Server, Toxiproxy

from jobs import commits, layout
from jobs.access import Access
from jobs.outbox import Outbox
from jobs.s3 import PART_BYTES, S3Store

pytestmark = pytest.mark.store

PART = 5 << 20
PARTS = 8
RATE = 8_000
"""KB/s of one connection, so that there is time to kill in."""

PROGRAM = """
import sys
from pathlib import Path
from jobs.access import Access
from jobs.s3 import S3Store
endpoint, bucket, scratch, path = sys.argv[1:]
store = S3Store(bucket, "", Access(endpoint=endpoint), Path(scratch), part_bytes=5 << 20)
print(store.put("big", Path(path)).sha256)
"""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PARTS * PART - 1000))
    return path


@contextmanager
def slow(toxiproxy: Toxiproxy, proxy: FaultProxy) -> Iterator[Link]:
    """Yield a road behind which the proxy counts, and that takes its time."""
    with toxiproxy.link(proxy.endpoint) as link:
        link.add("bandwidth", "upstream", rate=RATE)
        yield link


def kill_when_sent(
    command: list[str], proxy: FaultProxy, wanted: float, link: Link | None = None
) -> None:
    """Run a command and kill it, and its link, when that many bytes of parts were passed on."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while proxy.sent("PUT", "big") < wanted:
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.kill()
        if link:
            link.enable(on=False)
        child.wait()
    before = -1
    while before != (now := proxy.sent("PUT", "big")):  # what was on its way
        before = now
        time.sleep(0.2)


def again(link: Link, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command over the same road, now a fast one."""
    link.clear()
    link.enable(on=True)
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def parts_there(server: Server, bucket: str) -> list[int]:
    """Return the numbers of the parts that the server has of the one unfinished upload."""
    client = server.client()
    (upload,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    listed = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return [part["PartNumber"] for part in listed.get("Parts", ())]


def unfinished(server: Server, bucket: str) -> list[str]:
    listed = server.client().list_multipart_uploads(Bucket=bucket)
    return [row["UploadId"] for row in listed.get("Uploads", ())]


def content(server: Server, bucket: str, key: str) -> bytes:
    found: bytes = server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return found


@pytest.mark.parametrize(
    ("share", "arrives"),
    [(0.5, False), (0.9, False), (0.9, True)],
    ids=["half", "most", "unacknowledged"],
)
def test_only_the_rest_is_sent_again(
    server: Server, bucket: str, proxy: FaultProxy, toxiproxy: Toxiproxy, big: Path, tmp_path: Path,
    share: float, arrives: bool,
) -> None:  # fmt: skip
    command = [sys.executable, "-c", PROGRAM]
    rest = [bucket, str(tmp_path / "scratch"), str(big)]
    with slow(toxiproxy, proxy) as link:
        # What the kernel and the road still hold of the dead arrives, unless the road ends too.
        kill = [*command, link.endpoint, *rest]
        kill_when_sent(kill, proxy, share * big.stat().st_size, None if arrives else link)
        there = parts_there(server, bucket)
        assert len(there) >= share * PARTS - 4
        assert arrives or len(there) < PARTS
        proxy.forget()
        ended = again(link, [*command, link.endpoint, *rest])
    assert ended.returncode == 0, ended.stderr
    sent = proxy.found("PUT", "big")
    assert len({row.part for row in sent}) == len(sent) <= PARTS - len(there) + 1
    assert proxy.sent("PUT", "big") <= (PARTS - len(there) + 1) * PART
    assert ended.stdout.strip() == commits.sha256_of(big)
    assert content(server, bucket, "big") == big.read_bytes()
    assert unfinished(server, bucket) == []


def test_who_has_no_table_sends_all_and_clears_what_was_left(
    server: Server, bucket: str, proxy: FaultProxy, toxiproxy: Toxiproxy, big: Path, tmp_path: Path
) -> None:
    rest = [bucket, str(tmp_path / "scratch"), str(big)]
    with slow(toxiproxy, proxy) as link:
        kill_when_sent([sys.executable, "-c", PROGRAM, link.endpoint, *rest], proxy, 2 * PART)
        left = unfinished(server, bucket)
        assert len(left) == 1
        access = Access(endpoint=link.endpoint)
        old = S3Store(bucket, "", access, tmp_path / "scratch", part_bytes=PART)
        assert old.abort("", time.time() + 60) == 0  # it could go on with it
    new = S3Store(bucket, "", Access(endpoint=proxy.endpoint), tmp_path / "other", part_bytes=PART)
    assert [entry.key for entry in new.unfinished("")] == ["big"]
    assert new.unfinished("other/") == []
    assert new.abort("other/", time.time() + 60) == 0
    assert new.abort("", time.time() - 3600) == 0
    assert unfinished(server, bucket) == left
    proxy.forget()
    assert new.put("big", big).sha256 == commits.sha256_of(big)
    assert proxy.sent("PUT", "big") == big.stat().st_size
    assert unfinished(server, bucket) == left
    assert new.abort("", time.time() + 60) == 1
    assert unfinished(server, bucket) == []
    assert content(server, bucket, "big") == big.read_bytes()


def test_a_file_that_has_changed_since_is_sent_anew(
    server: Server, bucket: str, proxy: FaultProxy, toxiproxy: Toxiproxy, big: Path, tmp_path: Path
) -> None:
    rest = [bucket, str(tmp_path / "scratch"), str(big)]
    command = [sys.executable, "-c", PROGRAM]
    facts = big.stat()
    with slow(toxiproxy, proxy) as link:
        kill_when_sent([*command, link.endpoint, *rest], proxy, 4 * PART)
        big.write_bytes(os.urandom(facts.st_size))
        os.utime(big, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # the worst case: as before
        ended = again(link, [*command, link.endpoint, *rest])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == commits.sha256_of(big)
    assert content(server, bucket, "big") == big.read_bytes()
    assert unfinished(server, bucket) == []


@pytest.mark.parametrize("how", ["aborted", "tampered", "torn"])
def test_a_table_that_is_wrong_does_no_harm(
    server: Server, bucket: str, proxy: FaultProxy, toxiproxy: Toxiproxy, big: Path, tmp_path: Path,
    how: str,
) -> None:  # fmt: skip
    rest = [bucket, str(tmp_path / "scratch"), str(big)]
    command = [sys.executable, "-c", PROGRAM]
    with slow(toxiproxy, proxy) as link:
        kill_when_sent([*command, link.endpoint, *rest], proxy, 4 * PART)
        client, (upload,) = server.client(), unfinished(server, bucket)
        (table,) = (tmp_path / "scratch").glob("*.json")
        if how == "aborted":
            client.abort_multipart_upload(Bucket=bucket, Key="big", UploadId=upload)
        elif how == "torn":
            table.write_text(table.read_text()[:-20])
        else:  # the server has a part of somebody else's (rclone lets none be replaced)
            client.upload_part(
                Bucket=bucket, Key="big", UploadId=upload, PartNumber=PARTS, Body=os.urandom(PART),
                ChecksumAlgorithm="SHA256",
            )  # fmt: skip
        ended = again(link, [*command, link.endpoint, *rest])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == commits.sha256_of(big)
    assert content(server, bucket, "big") == big.read_bytes()


def test_a_killed_uploader_goes_on_with_its_work_folder(
    server: Server, bucket: str, proxy: FaultProxy, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path / "work")
    draft = outbox.draft(20)
    parts = 5
    data = os.urandom(parts * PART_BYTES)
    (draft / "big").write_bytes(data)
    outbox.publish(draft)
    outbox.done.touch()
    plain = S3Store(bucket, "", Access(endpoint=server.endpoint))
    claim = commits.take_claim(plain, "run", cluster="", namespace="", uid="u")
    with slow(toxiproxy, proxy) as link:
        variables = {
            "JOB_SPEC": "{}", "JOB_RUN": "run", "JOB_STORE": f"s3://{bucket}", "JOB_UID": "u",
            "JOB_STORE_ENDPOINT": link.endpoint, "JOB_WORK": str(outbox.work),
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            command = [sys.executable, "-m", "jobs.sync", claim.to_json().decode()]
            kill_when_sent(command, proxy, 0.5 * len(data))
            there = parts_there(server, bucket)
            assert commits.committed_steps(plain, "run") == []
            proxy.forget()
            ended = again(link, command)
    assert ended.returncode == 0, ended.stdout
    assert len(proxy.found("PUT", "big")) <= parts - len(there) + 1
    key = layout.key("run", layout.CHECKPOINTS, "step-00000020", "big")
    assert content(server, bucket, key) == data
    assert commits.committed_steps(plain, "run") == [20]


def test_part_sizes_grow_before_there_are_too_many() -> None:
    from jobs.parts import MOST_PARTS, part_size

    for size in (1, PART, PART * MOST_PARTS, PART * MOST_PARTS + 1, 5 << 40):
        grown = part_size(size, PART)
        assert grown % PART == 0
        assert -(-size // grown) <= MOST_PARTS
