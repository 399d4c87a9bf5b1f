"""What of the S3 store needs no server: the proof of an upload; tests/s3 has the servers."""

from __future__ import annotations

import pytest

from jobs.access import Access, preset
from jobs.parts import Digests, in_base64
from jobs.s3 import S3Store
from jobs.s3faults import Away

BODY = Digests(b"body")
GOOD = in_base64(BODY.sha256)


def store(checksum: str = "sha256") -> S3Store:
    return S3Store("bucket", "", Access(endpoint="http://127.0.0.1:1", checksum=checksum))


def test_the_servers_checksum_proves_or_disproves() -> None:
    assert store().proven({"ChecksumSHA256": GOOD, "ETag": "anything"}, BODY)
    with pytest.raises(Away, match="other bytes"):
        store().proven({"ChecksumSHA256": in_base64(Digests(b"bodx").sha256)}, BODY)


def test_a_server_without_checksums_is_taken_at_its_tag() -> None:
    other = store()
    assert other.proven({"ETag": f'"{BODY.md5.hex()}"'}, BODY)
    assert other.checksum == "md5"
    assert "ContentMD5" in other.proof(BODY)


def test_neither_checksum_nor_tag_is_no_proof_and_changes_nothing() -> None:
    other = store()
    assert not other.proven({"ETag": "opaque"}, BODY)
    assert not other.proven({}, BODY)
    assert other.checksum == "sha256"


@pytest.mark.parametrize(
    ("endpoint", "addressing", "checksum", "region"),
    [
        ("", "auto", "sha256", ""),
        ("https://s3.eu-west-1.amazonaws.com", "virtual", "sha256", ""),
        ("https://obs.cn-north-4.myhuaweicloud.com", "virtual", "md5", ""),
        ("https://obs.example.com", "virtual", "md5", ""),
        ("https://id.r2.cloudflarestorage.com", "path", "sha256", "auto"),
        ("http://minio.storage.svc:9000", "path", "sha256", ""),
        ("http://10.0.0.1:7480", "path", "sha256", ""),
    ],
)
def test_presets(endpoint: str, addressing: str, checksum: str, region: str) -> None:
    found = preset(Access(endpoint=endpoint))
    assert (found.addressing, found.checksum, found.region) == (addressing, checksum, region)
    own = Access(endpoint=endpoint, addressing="path", checksum="none", region="r")
    assert preset(own) == own
