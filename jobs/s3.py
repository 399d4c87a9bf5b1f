"""Owns the store that speaks S3, by boto3: one request each, proven by checksum, retried.

Large objects go by multipart.py and ranges.py. Must not know what a run or a commit is.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from jobs import multipart, ranges
from jobs.access import Access, preset
from jobs.errors import BadSpec
from jobs.parts import Digests, Tables, in_base64, tag_of
from jobs.s3client import connect
from jobs.s3faults import Away, Outdated, retrying
from jobs.stores import Conflict, Entry, Progress, Refused, Stored, check_key, is_key, unwatched

T = TypeVar("T")

PART_BYTES = 16 * 1024 * 1024  # a request costs nothing beside it, and losing it little
PARTS_AT_ONCE = 4
BUFFERS = 6
"""Parts held in memory at once, over all files: 96 MiB."""


_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".json": "application/json", ".png": "image/png",
    ".jsonl": "text/plain; charset=utf-8", ".log": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
"""What a browser shows by itself, such as a report that was pushed; all else it downloads."""


def content_type(key: str) -> str:
    """Return the media type of an object by its key's ending."""
    return _TYPES.get(PurePosixPath(key).suffix.lower(), "application/octet-stream")


class S3Store:
    """A bucket, or a prefix in it."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        access: Access,
        scratch: Path | None = None,
        *,
        part_bytes: int = PART_BYTES,
    ) -> None:
        """Nothing is sent yet.

        Raises:
            BadSpec: the bucket has no name, or the prefix is no legal key.
        """
        if not bucket:
            raise BadSpec("store 's3://': names no bucket (s3://bucket/prefix)")
        prefix = prefix.strip("/")
        try:
            prefix = prefix and check_key(prefix)
        except ValueError as error:
            raise BadSpec(f"store 's3://{bucket}/{prefix}': {error}") from error
        self.bucket = bucket
        self.prefix = prefix
        self.access = preset(access)
        self.part_bytes = part_bytes
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.checksum = self.access.checksum
        """How uploads are proven; falls to md5 with a server that ignores the newer headers."""
        self.slots = threading.BoundedSemaphore(BUFFERS)
        self.buffers = ranges.Buffers(BUFFERS, part_bytes)
        self.tables = Tables(scratch)

    @cached_property
    def client(self) -> Any:
        """The boto3 client; made at the first request, since the import takes a while."""
        return connect(self.access, connections=4 * PARTS_AT_ONCE)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that move parts of all files."""
        return ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="part")

    def name(self, key: str) -> str:
        """Return the object's full key."""
        return f"{self.prefix}/{check_key(key)}".lstrip("/")

    def place(self, key: str) -> str:
        """Return endpoint, bucket and key as messages name them."""
        host = self.access.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3")
        host = host or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return f"{self.url}/{key} at {host}" if key else f"{self.url} at {host}"

    def call(self, operation: str, key: str, **arguments: object) -> Any:
        """Send one request about an object, with retries.

        Raises:
            FileNotFoundError, Refused, OSError: as `retrying` does.
        """
        return self.trying(
            key,
            lambda: getattr(self.client, operation)(
                Bucket=self.bucket, Key=self.name(key), **arguments
            ),
        )

    def trying(self, key: str, action: Callable[[], T]) -> T:
        """Return what `action` returns, with retries; errors name the object."""
        return retrying(self.place(key), action)

    def put(self, key: str, path: Path, progress: Progress = unwatched) -> Stored:
        """Store a file; a large one in parts."""
        if path.stat().st_size > self.part_bytes:
            return multipart.put(self, key, path, progress)
        with path.open("rb") as file:
            data = file.read(self.part_bytes + 1)
            if len(data) != path.stat().st_size:
                raise Refused(f"{path}: changed while it was read; try again when it is at rest")
        stored = self.write(key, data)
        progress(len(data))
        return stored

    def write(self, key: str, data: bytes) -> Stored:
        """Store bytes in one request."""
        return self._put(key, data)

    def _put(self, key: str, data: bytes, **conditions: str) -> Stored:
        digests = Digests(data)

        def send() -> Stored:
            given = self.proof(digests)
            name = self.name(key)
            answer = self.client.put_object(
                Bucket=self.bucket, Key=name, Body=data, ContentType=content_type(key),
                **given, **conditions,
            )  # fmt: skip
            if not self.proven(answer, digests):
                self.read_back(key, digests.sha256.hex())
            return Stored(len(data), digests.sha256.hex(), tag_of(answer))

        return self.trying(key, send)

    def proof(self, digests: Digests) -> dict[str, str]:
        """Return the header by which the server checks a body."""
        if self.checksum == "sha256":
            return {"ChecksumSHA256": in_base64(digests.sha256)}
        if self.checksum == "md5":
            return {"ContentMD5": in_base64(digests.md5)}
        return {}

    def proven(self, answer: Mapping[str, Any], digests: Digests) -> bool:
        """Say whether the server's answer proves that it holds these bytes.

        Raises:
            Away: it tells of other bytes.
        """
        told = answer.get("ChecksumSHA256")
        if self.checksum == "sha256" and told:
            if told != in_base64(digests.sha256):
                raise Away("the server holds other bytes than were sent")
            return True
        if tag_of(answer) != digests.md5.hex():
            return False
        if self.checksum == "sha256":
            self.checksum = "md5"  # it ignores the header: from now on the ETag is the proof
        return True

    def read_back(self, key: str, sha256: str) -> None:
        """Compare what the store gives back, where no checksum proves it.

        Raises:
            Away: it gives back other bytes, or none.
        """
        try:
            found = self.sha256(key)
        except FileNotFoundError as error:
            raise Away(f"{self.place(key)}: is not there after it was written") from error
        if found != sha256:
            raise Away(f"{self.place(key)}: the store gives back other bytes than were written")

    def swap(self, key: str, old: bytes | None, new: bytes) -> None:
        """Replace an object by conditional PUT; where the server has none, compare and read back.

        Raises:
            Conflict: it is not `old`.
        """

        def fetch() -> tuple[bytes, str]:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.name(key))
            if "ETag" not in answer:
                raise Away(f"{self.place(key)}: the answer was cut")
            return answer["Body"].read(), str(answer["ETag"])

        now: bytes | None
        try:
            now, tag = self.trying(key, fetch)
        except FileNotFoundError:
            now, tag = None, ""
        if now == new:
            return  # an earlier try whose answer was lost
        if now != old:
            raise Conflict(key)
        try:
            self._put(key, new, **({"IfMatch": tag} if tag else {"IfNoneMatch": "*"}))
        except Outdated as error:
            # Ours, if a retry met what the try before it had written.
            if not self._holds(key, new):
                raise Conflict(key) from error
        except Refused as error:
            if "NotImplemented" not in str(error):
                raise
            self._put(key, new)
        if not self._holds(key, new):
            raise Conflict(key)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except FileNotFoundError:
            return False

    def get(self, key: str, path: Path, progress: Progress = unwatched) -> str:
        """Copy an object to a file, by ranges side by side; return its SHA-256."""
        return ranges.get(self, key, path, progress)

    def read(self, key: str) -> bytes:
        """Return the object's bytes."""

        def fetch() -> bytes:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.name(key))
            data: bytes = answer["Body"].read()  # checks the length
            return data

        return self.trying(key, fetch)

    def sha256(self, key: str) -> str:
        """Return the digest of the bytes the store gives back."""

        def fetch() -> str:
            body = self.client.get_object(Bucket=self.bucket, Key=self.name(key))["Body"]
            digest = hashlib.sha256()
            for chunk in body.iter_chunks(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()

        return self.trying(key, fetch)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below the prefix, a page of 1,000 a request."""
        start = f"{self.prefix}/{prefix}".lstrip("/")
        more: dict[str, str] = {}

        def ask() -> Any:
            return self.client.list_objects_v2(Bucket=self.bucket, Prefix=start, **more)

        while True:
            page = self.trying(prefix, ask)
            if "IsTruncated" not in page:
                raise Away(f"{self.place(prefix)}: the answer is no list; is this an S3 server?")
            for row in page.get("Contents", ()):
                key = row["Key"][len(self.prefix) + 1 if self.prefix else 0 :]
                if is_key(key):
                    yield Entry(key, row["Size"], tag_of(row), row["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove the object; in a versioned bucket its versions stay, invisible."""
        try:
            self.call("delete_object", key)
        except FileNotFoundError:
            return

    def unfinished(self, prefix: str) -> Sequence[Entry]:
        """Return the multipart uploads that have not ended."""
        return [entry for _, entry in multipart.unfinished(self, prefix)]

    def abort(self, prefix: str, before: float) -> int:
        """Abort multipart uploads begun before that time, but none that can still go on here."""
        return multipart.abort(self, prefix, before)
