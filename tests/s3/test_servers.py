"""The tests' own tools: each server serves, each fault happens, what is passed on is counted."""

from __future__ import annotations

import base64
import hashlib
import time
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from faultproxy import FaultProxy, fault_proxy
from faults import EVER, Fault, skewed, slow_down
from servers import Link, Server

pytestmark = pytest.mark.store

DATA = bytes(range(256)) * 512  # 128 KiB
PART = 5 << 20  # the least that S3 takes for a part that is not the last


def test_a_server_keeps_lists_and_completes(server: Server, bucket: str) -> None:
    s3 = server.client()
    s3.put_object(Bucket=bucket, Key="a b/\u00fc+%25", Body=DATA)
    assert s3.get_object(Bucket=bucket, Key="a b/\u00fc+%25")["Body"].read() == DATA
    upload = s3.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    tags = [
        s3.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=n, Body=body)["ETag"]
        for n, body in ((1, b"x" * PART), (2, b"y"))
    ]
    parts = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]
    s3.complete_multipart_upload(
        Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    found = {row["Key"]: row["Size"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert found == {"a b/\u00fc+%25": len(DATA), "big": PART + 1}
    assert (server.root / bucket / "big").stat().st_size == PART + 1
    assert server.secret_key not in server.log.read_text()


def test_a_wrong_key_is_refused(server: Server, bucket: str) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        replace(server, secret_key="other").client().list_objects_v2(Bucket=bucket)


def test_without_faults_everything_passes_and_is_counted(
    server: Server, bucket: str, proxy: FaultProxy
) -> None:
    s3 = server.client(proxy.endpoint)
    s3.put_object(Bucket=bucket, Key="a b/\u00fc+%25", Body=DATA)
    assert s3.get_object(Bucket=bucket, Key="a b/\u00fc+%25")["Body"].read() == DATA
    assert s3.head_object(Bucket=bucket, Key="a b/\u00fc+%25")["ContentLength"] == len(DATA)
    assert [r["Key"] for r in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["a b/\u00fc+%25"]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=3, Body=b"xyz")
    s3.abort_multipart_upload(Bucket=bucket, Key="big", UploadId=upload)
    s3.delete_object(Bucket=bucket, Key="a b/\u00fc+%25")
    assert proxy.sent("PUT", "a b/") == len(DATA)
    assert proxy.sent("PUT", "big", part=3) == 3
    assert [row.method for row in proxy.found(key="\u00fc+%25")] == ["PUT", "GET", "HEAD", "DELETE"]


ANSWERS = {
    "503": (Fault("answer"), "503"),
    "503 retry-after": (Fault("answer", headers={"Retry-After": "1"}), "503"),
    "slow down": (slow_down(), "SlowDown"),
    "500": (Fault("answer", status=500, code="InternalError"), "InternalError"),
    "429": (Fault("answer", status=429, code="TooManyRequests"), "TooManyRequests"),
    "skew": (skewed(), "RequestTimeTooSkewed"),
    "403": (Fault("answer", status=403, code="AccessDenied"), "AccessDenied"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_come_by_schedule(versitygw: Server, tmp_path: Path, name: str) -> None:
    fault, code = copy(ANSWERS[name][0]), ANSWERS[name][1]
    fault.method, fault.key, fault.first, fault.times = "PUT", "/k$", 2, 2
    bucket = versitygw.bucket()
    with fault_proxy(versitygw.endpoint) as proxy:
        proxy.faults = [fault]
        s3 = versitygw.client(proxy.endpoint)
        seen = []
        for key in ("k", "other", "k", "k", "k"):
            try:
                s3.put_object(Bucket=bucket, Key=key, Body=b"abc")
                seen.append("")
            except ClientError as error:
                seen.append(error.response["Error"]["Code"])
                headers = error.response["ResponseMetadata"]["HTTPHeaders"]
                assert headers.get("retry-after") == fault.headers.get("Retry-After")
                assert name != "skew" or headers["date"].endswith("GMT")
        assert seen == ["", "", code, code, ""]
        assert fault.done == 2
        assert proxy.sent("PUT", "/k") == 6


def test_what_breaks_on_the_way(server: Server, bucket: str, proxy: FaultProxy) -> None:
    s3 = server.client(proxy.endpoint, read_timeout=1)

    def put(fault: Fault) -> None:
        proxy.forget()
        proxy.faults = [fault]
        s3.put_object(Bucket=bucket, Key="k", Body=DATA)

    def present() -> bool:
        return "Contents" in server.client().list_objects_v2(Bucket=bucket)

    with pytest.raises(ConnectionClosedError):
        put(Fault("close"))
    with pytest.raises(HTTPClientError):
        put(Fault("cut"))
    assert proxy.sent() == len(DATA) // 2
    with pytest.raises(ReadTimeoutError):
        put(Fault("hang", seconds=5))
    put(Fault("swallow"))
    assert not present()
    with pytest.raises(ConnectionClosedError):
        put(Fault("lose"))
    assert present()
    started = time.monotonic()
    put(Fault("delay", seconds=0.2))
    assert time.monotonic() - started >= 0.2


def test_of_a_body_corrupted_on_its_way_rclone_takes_any_but_under_a_md5(
    server: Server, bucket: str, proxy: FaultProxy
) -> None:
    proxy.faults = [Fault("corrupt", times=EVER)]
    s3 = server.client(proxy.endpoint)
    md5 = hashlib.md5(DATA).digest()
    with pytest.raises(ClientError, match=r"BadDigest|SHA256Mismatch"):
        s3.put_object(Bucket=bucket, Key="k", Body=DATA, ContentMD5=base64.b64encode(md5).decode())
    if server.name == "versitygw":
        with pytest.raises(ClientError, match="SHA256Mismatch"):
            s3.put_object(Bucket=bucket, Key="k", Body=DATA)
        return
    # It checks neither the signed SHA256 nor the checksum that it keeps and gives back as if it
    # were the object's: a client must look at the ETag.
    answer = s3.put_object(Bucket=bucket, Key="k", Body=DATA, ChecksumAlgorithm="SHA256")
    said = server.client().head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert said["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    plain = server.client(response_checksum_validation="when_required")
    kept = plain.get_object(Bucket=bucket, Key="k")["Body"].read()
    assert sum(a != b for a, b in zip(kept, DATA, strict=True)) == 1
    assert answer["ETag"] != f'"{md5.hex()}"'


def test_bodies_that_are_not_the_objects(server: Server, bucket: str, proxy: FaultProxy) -> None:
    server.client().put_object(Bucket=bucket, Key="k", Body=DATA)
    s3 = server.client(proxy.endpoint, response_checksum_validation="when_required")
    proxy.faults = [Fault("truncate", "GET"), Fault("wrong", "GET", first=2, times=EVER)]
    with pytest.raises((ResponseStreamingError, BotoCoreError)):
        s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    body = s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    assert [n for n in range(len(DATA)) if body[n] != DATA[n]] == [len(DATA) // 2]


def test_a_link_fails_as_told(server: Server, bucket: str, link: Link) -> None:
    s3 = server.client(link.endpoint, read_timeout=1)
    s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    link.add("latency", latency=300)
    started = time.monotonic()
    s3.head_object(Bucket=bucket, Key="k")
    assert time.monotonic() - started >= 0.3
    link.clear()
    link.add("limit_data", bytes=1000)
    with pytest.raises(BotoCoreError):
        s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    link.clear()
    link.enable(on=False)
    with pytest.raises(EndpointConnectionError):
        s3.head_object(Bucket=bucket, Key="k")
    link.enable(on=True)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == DATA
