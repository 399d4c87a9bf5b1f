"""What must not be believed of a server while a large file is sent, and what is taken up again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy, fault_proxy
from faults import EVER, Fault
from servers import REGION, Server

from jobs import s3client, s3faults
from jobs.access import Access
from jobs.s3 import BUFFERS, S3Store
from jobs.stores import Refused

pytestmark = pytest.mark.store

PART = 5 << 20
"""The least that S3 takes for a part that is not the last."""
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'

Opened = Callable[..., S3Store]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3faults, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3client, "READ_SECONDS", 5)


@pytest.fixture
def opened(versitygw: Server, tmp_path: Path) -> Opened:
    name = versitygw.bucket()

    def make(endpoint: str = "") -> S3Store:
        access = Access(endpoint=endpoint or versitygw.endpoint, region=REGION)
        return S3Store(name, "", access, tmp_path / "scratch", part_bytes=PART)

    return make


@pytest.fixture
def proxy(versitygw: Server) -> Iterator[FaultProxy]:
    with fault_proxy(versitygw.endpoint) as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(4 * PART))
    return path


def interrupted(opened: Opened, proxy: FaultProxy, file: Path) -> int:
    """Send the file by a road that loses part 4; return how many bytes got through."""
    proxy.faults = [Fault("close", "PUT", query="partNumber=4(&|$)", times=EVER)]
    with pytest.raises(OSError, match="part 4"):
        opened(proxy.endpoint).put("big", file)
    got = sum(row.sent for row in proxy.requests if row.method == "PUT" and not row.fault)
    proxy.forget()
    return got


def completed(extra: str) -> bytes:
    body = f"<CompleteMultipartUploadResult {NAMESPACE}><Key>big</Key><ETag>x-4</ETag>{extra}"
    return f"{body}</CompleteMultipartUploadResult>".encode()


def test_an_object_made_of_other_parts_is_no_success(
    opened: Opened, proxy: FaultProxy, file: Path
) -> None:
    checksum = f"<ChecksumSHA256>{'A' * 43}=-4</ChecksumSHA256>"
    proxy.faults = [
        Fault("answer", "POST", query="uploadId", status=200, body=completed(checksum), times=EVER)
    ]
    with pytest.raises(OSError, match="another object of the parts"):
        opened(proxy.endpoint).put("big", file)


@pytest.mark.parametrize("there", [False, True])
def test_an_upload_that_is_gone_is_a_success_only_if_the_object_is_there(
    opened: Opened, proxy: FaultProxy, file: Path, there: bool
) -> None:
    gone = Fault("answer", "POST", query="uploadId", status=404, code="NoSuchUpload", times=EVER)
    if there:  # an earlier answer was lost, and the object is what it should be
        opened().put("big", file)
    proxy.faults = [gone]
    if there:
        assert opened(proxy.endpoint).put("big", file).size == 4 * PART
        return
    with pytest.raises(OSError, match="is not there after it was written"):
        opened(proxy.endpoint).put("big", file)


def test_an_upload_that_is_gone_and_left_another_object_is_no_success(
    opened: Opened, proxy: FaultProxy, file: Path
) -> None:
    opened().write("big", b"of somebody else")
    proxy.faults = [
        Fault("answer", "POST", query="uploadId", status=404, code="NoSuchUpload", times=EVER)
    ]
    with pytest.raises(OSError, match="gives back other bytes") as told:
        opened(proxy.endpoint).put("big", file)
    assert not isinstance(told.value, Refused)


def test_parts_that_are_there_are_found_on_every_page_of_the_list(
    opened: Opened, proxy: FaultProxy, file: Path
) -> None:
    before = interrupted(opened, proxy, file)
    store = opened()
    (begun,) = store.client.list_multipart_uploads(Bucket=store.bucket)["Uploads"]
    asked = {"Bucket": store.bucket, "Key": "big", "UploadId": begun["UploadId"]}
    rows = store.client.list_parts(**asked)["Parts"]
    have = [row["PartNumber"] for row in rows]
    assert len(have) > 1
    first = rows[0]
    page = (
        f"<ListPartsResult {NAMESPACE}><IsTruncated>true</IsTruncated>"
        f"<NextPartNumberMarker>{first['PartNumber']}</NextPartNumberMarker>"
        f"<Part><PartNumber>{first['PartNumber']}</PartNumber><ETag>{first['ETag']}</ETag>"
        f"<ChecksumSHA256>{first.get('ChecksumSHA256', '')}</ChecksumSHA256>"
        f"<Size>{PART}</Size></Part></ListPartsResult>"
    ).encode()
    proxy.faults = [Fault("answer", "GET", key="/big", query="uploadId", status=200, body=page)]
    assert opened(proxy.endpoint).put("big", file).size == 4 * PART
    assert proxy.faults[0].done == 1
    assert proxy.sent("PUT", "big") == 4 * PART - len(have) * PART
    assert before >= len(have) * PART


def test_a_file_that_was_written_again_is_not_joined_to_the_old_one_s_upload(
    opened: Opened, proxy: FaultProxy, file: Path
) -> None:
    interrupted(opened, proxy, file)
    data = os.urandom(4 * PART)
    file.write_bytes(data)
    store = opened(proxy.endpoint)
    store.put("big", file)
    assert store.read("big") == data
    assert len([row for row in proxy.found("POST", "big") if "uploads" in row.query]) == 1
    assert store.unfinished("") == []


def test_a_file_that_is_written_again_while_it_is_sent_is_told(
    opened: Opened, proxy: FaultProxy, file: Path
) -> None:
    def rewrite(_: object) -> None:
        file.write_bytes(os.urandom(4 * PART))
        proxy.after = lambda _: None

    proxy.after = rewrite
    with pytest.raises(Refused, match="changed while it was read"):
        opened(proxy.endpoint).put("big", file)
    assert opened().unfinished("") == []
    assert list(opened().list("")) == []


def test_a_file_that_fails_gives_its_place_back(
    opened: Opened, proxy: FaultProxy, file: Path
) -> None:
    store = opened(proxy.endpoint)
    for _ in range(BUFFERS + 2):
        proxy.faults = [Fault("close", "PUT", query="partNumber=2(&|$)", times=EVER)]
        with pytest.raises(OSError, match="part 2"):
            store.put("big", file)
    proxy.faults = []
    found: list[int] = []
    last = threading.Thread(target=lambda: found.append(store.put("big", file).size), daemon=True)
    last.start()
    last.join(60)
    assert found == [4 * PART]
