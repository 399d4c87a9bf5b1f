"""A killed uploader sends only what the server does not have; counted on the way there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from servers import Link, Server, Toxiproxy
from zygote import Child, Zygote

from jobs import claims, commits, layout
from jobs.access import Access
from jobs.outbox import Outbox
from jobs.parts import MOST_PARTS, part_size
from jobs.s3 import PART_BYTES, S3Store

pytestmark = pytest.mark.store

PART = 5 << 20
"""The least that S3 takes for a part that is not the last."""
PARTS = 8
RATE = 8_000
"""KB/s of one connection, so that there is time to kill in."""

PROGRAM = """
import sys
from pathlib import Path
from jobs.access import Access
from jobs.s3 import S3Store
endpoint, bucket, scratch, path, part = sys.argv[1:]
store = S3Store(bucket, "", Access(endpoint=endpoint), Path(scratch), part_bytes=int(part))
print(store.put("big", Path(path)).sha256)
"""
UPLOADER = "import jobs.sync; raise SystemExit(jobs.sync.main())"


@dataclass
class Rig:
    """A server, a slow road to it on which is counted, a file and a process that sends it."""

    server: Server
    bucket: str
    proxy: FaultProxy
    link: Link
    forks: Zygote
    folder: Path
    part: int = PART

    @property
    def file(self) -> Path:
        return self.folder / "file"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def start(self) -> Child:
        """Begin to send the file."""
        words = (self.link.endpoint, self.bucket, str(self.scratch), str(self.file), str(self.part))
        return self.forks.fork(PROGRAM, self.folder / "output", *words)

    def kill(self, child: Child, sent: float, *, road: bool = False) -> None:
        """Kill it, and the road, when that many bytes of parts have been passed on."""
        deadline = time.monotonic() + 60
        while self.proxy.sent("PUT", "big") < sent:
            assert child.running(), child.told()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.kill()
        if road:
            self.link.enable(on=False)
        before = -1
        while before != (now := self.proxy.sent("PUT", "big")):  # what was on its way
            before = now
            time.sleep(0.2)

    def quicken(self) -> None:
        """Make the road a whole and fast one, at the same address."""
        self.link.clear()
        self.link.enable(on=True)

    def send_again(self) -> None:
        """Send the file once more; it has to arrive."""
        self.quicken()
        child = self.start()
        assert child.wait() == 0, child.told()
        assert child.told().strip() == commits.sha256_of(self.file)
        assert self.content("big") == self.file.read_bytes()
        assert self.unfinished() == []

    def parts(self) -> list[int]:
        """Return the numbers of the parts that the server has of the one unfinished upload."""
        (upload,) = self.server.client().list_multipart_uploads(Bucket=self.bucket)["Uploads"]
        listed = self.server.client().list_parts(
            Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )
        return [part["PartNumber"] for part in listed.get("Parts", ())]

    def unfinished(self) -> list[str]:
        listed = self.server.client().list_multipart_uploads(Bucket=self.bucket)
        return [row["UploadId"] for row in listed.get("Uploads", ())]

    def content(self, key: str) -> bytes:
        answer = self.server.client().get_object(Bucket=self.bucket, Key=key)
        found: bytes = answer["Body"].read()
        return found


@pytest.fixture
def rig(
    server: Server, bucket: str, proxy: FaultProxy, toxiproxy: Toxiproxy, forks: Zygote,
    tmp_path: Path,
) -> Iterator[Rig]:  # fmt: skip
    with toxiproxy.link(proxy.endpoint) as link:
        link.add("bandwidth", "upstream", rate=RATE)
        made = Rig(server, bucket, proxy, link, forks, tmp_path)
        made.file.write_bytes(os.urandom(PARTS * PART - 1000))
        yield made


@pytest.mark.parametrize(
    ("share", "arrives"),
    [(0.5, False), (0.9, False), (0.9, True)],
    ids=["half", "most", "unacknowledged"],
)
def test_only_the_rest_is_sent_again(rig: Rig, share: float, arrives: bool) -> None:
    # What the kernel and the road still hold of the dead arrives, unless the road ends with it.
    rig.kill(rig.start(), share * rig.file.stat().st_size, road=not arrives)
    there = rig.parts()
    assert len(there) >= share * PARTS - 4
    assert arrives or len(there) < PARTS
    rig.proxy.forget()
    rig.send_again()
    sent = rig.proxy.found("PUT", "big")
    assert len({row.part for row in sent}) == len(sent) <= PARTS - len(there) + 1
    assert rig.proxy.sent("PUT", "big") <= (PARTS - len(there) + 1) * PART


def test_who_has_no_table_sends_all_and_clears_what_was_left(rig: Rig) -> None:
    rig.kill(rig.start(), 2 * PART)
    left = rig.unfinished()
    assert len(left) == 1

    def opened(endpoint: str, scratch: Path) -> S3Store:
        return S3Store(rig.bucket, "", Access(endpoint=endpoint), scratch, part_bytes=PART)

    old = opened(rig.link.endpoint, rig.scratch)
    assert old.abort("", time.time() + 60) == 0  # it could go on with it
    new = opened(rig.proxy.endpoint, rig.folder / "other")
    assert [entry.key for entry in new.unfinished("")] == ["big"]
    assert new.unfinished("other/") == []
    assert new.abort("other/", time.time() + 60) == 0
    assert new.abort("", time.time() - 3600) == 0
    assert rig.unfinished() == left
    rig.proxy.forget()
    assert new.put("big", rig.file).sha256 == commits.sha256_of(rig.file)
    assert rig.proxy.sent("PUT", "big") == rig.file.stat().st_size
    assert rig.unfinished() == left
    assert new.abort("", time.time() + 60) == 1
    assert rig.unfinished() == []
    assert rig.content("big") == rig.file.read_bytes()


def test_a_file_that_has_changed_since_is_sent_anew(rig: Rig) -> None:
    rig.kill(rig.start(), 4 * PART)
    facts = rig.file.stat()
    rig.file.write_bytes(os.urandom(facts.st_size))
    os.utime(rig.file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # the worst case: as before
    rig.send_again()


@pytest.mark.parametrize("how", ["aborted", "tampered", "torn"])
def test_a_table_that_is_wrong_does_no_harm(rig: Rig, how: str) -> None:
    rig.kill(rig.start(), 4 * PART, road=True)
    client, (upload,) = rig.server.client(), rig.unfinished()
    (table,) = rig.scratch.glob("*.json")
    if how == "aborted":
        client.abort_multipart_upload(Bucket=rig.bucket, Key="big", UploadId=upload)
    elif how == "torn":
        table.write_text(table.read_text()[:-20])
    else:  # the server has a part of somebody else's
        client.upload_part(
            Bucket=rig.bucket, Key="big", UploadId=upload, PartNumber=PARTS, Body=os.urandom(PART),
            ChecksumAlgorithm="SHA256",
        )  # fmt: skip
    rig.quicken()
    child = rig.start()
    assert child.wait() == 0, child.told()
    assert rig.content("big") == rig.file.read_bytes()
    assert rig.unfinished() == ([upload] if how == "torn" else [])  # whose nobody knows any more


def test_a_killed_uploader_goes_on_with_its_work_folder(rig: Rig) -> None:
    outbox = Outbox(rig.folder / "work")
    draft = outbox.draft(20)
    parts = 5
    data = os.urandom(parts * PART_BYTES)
    (draft / "big").write_bytes(data)
    outbox.publish(draft)
    outbox.done.touch()
    plain = S3Store(rig.bucket, "", Access(endpoint=rig.server.endpoint))
    claim = claims.take_claim(plain, "run", cluster="", namespace="", uid="u")
    variables = {
        "JOB_SPEC": "{}", "JOB_RUN": "run", "JOB_STORE": f"s3://{rig.bucket}", "JOB_UID": "u",
        "JOB_STORE_ENDPOINT": rig.link.endpoint, "JOB_WORK": str(outbox.work),
    }  # fmt: skip

    def start() -> Child:
        words = claim.to_json().decode()
        return rig.forks.fork(UPLOADER, rig.folder / "output", words, **variables)

    rig.kill(start(), 0.5 * len(data), road=True)
    there = rig.parts()
    assert commits.committed_steps(plain, "run") == []
    rig.proxy.forget()
    rig.quicken()
    child = start()
    assert child.wait(60) == 0, child.told()
    assert len(rig.proxy.found("PUT", "big")) <= parts - len(there) + 1
    assert rig.content(layout.key("run", layout.CHECKPOINTS, "step-00000020", "big")) == data
    assert commits.committed_steps(plain, "run") == [20]


def test_part_sizes_grow_before_there_are_too_many() -> None:
    for size in (1, PART, PART * MOST_PARTS, PART * MOST_PARTS + 1, 5 << 40):
        grown = part_size(size, PART)
        assert grown % PART == 0
        assert -(-size // grown) <= MOST_PARTS


@pytest.mark.chaos
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_of_a_gibibyte_only_the_rest_is_sent_again(rig: Rig, share: float) -> None:
    rig.part = PART_BYTES
    block = os.urandom(PART_BYTES - 4)
    with rig.file.open("wb") as file:
        for number in range((1 << 30) // PART_BYTES):
            file.write(number.to_bytes(4, "big") + block)
    rig.link.clear()
    rig.link.add("bandwidth", "upstream", rate=5 * RATE)
    rig.kill(rig.start(), share * (1 << 30), road=True)
    there, first = rig.parts(), rig.proxy.sent("PUT", "big")
    rig.proxy.forget()
    rig.send_again()
    again = rig.proxy.sent("PUT", "big")
    rest = (1 << 30) - len(there) * PART_BYTES
    whole = f"{len(there)} of 64 parts whole, {again >> 20} MiB sent again"
    print(f"{rig.server.name} killed at {share:.0%}: {first >> 20} MiB passed on, {whole}")
    assert again <= rest + PART_BYTES
