"""Owns the upload of a large file in parts, and going on with one that was interrupted.

The part table (parts.py) tells which upload is ours and which parts it has, with their digests; the
server's own list has to agree. Must not know what the file is.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.parts import Digests, Slice, Table, digest_of, in_base64, part_size, read_part, tag_of
from jobs.s3faults import Away, NoUpload, retrying
from jobs.stores import Entry, Progress, Refused, Stored, is_key

if TYPE_CHECKING:
    from jobs.s3 import S3Store

UNPROVEN = "unproven"
Listed = dict[int, tuple[str, str]]
"""Part number -> (ETag, SHA-256 in base64 or an empty text), as the server lists its parts."""


def put(store: S3Store, key: str, path: Path, progress: Progress) -> Stored:
    """Upload a file in parts; what an earlier call has sent is compared, not sent again.

    Raises:
        Refused: the file changed while it was read, or as S3Store.
        OSError: the server was away; the same call again goes on.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        facts = os.fstat(handle)
        table, there = _begin(store, key, facts)
        try:
            whole = _send(store, handle, table, there, progress)
        except Refused:
            # Not every server lets a part be sent again: once more, from the beginning.
            store.tables.forget(store.place(key))
            with suppress(OSError):
                _abort(store, key, table.upload)
            table, there = _begin(store, key, facts)
            whole = _send(store, handle, table, there, progress)
        after = os.fstat(handle)
        if (after.st_size, after.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns):
            store.tables.forget(store.place(key))
            with suppress(OSError):
                _abort(store, key, table.upload)
            raise Refused(f"{path}: changed while it was read; try again when it is at rest")
        tag = _complete(store, table, whole)
        store.tables.forget(store.place(key))
        return Stored(facts.st_size, whole, tag)
    finally:
        os.close(handle)


def _begin(store: S3Store, key: str, facts: os.stat_result) -> tuple[Table, Listed]:
    """Return the upload to go on with, or a new one, and the parts that the server has of it."""
    table = store.tables.load(store.place(key))
    if table is not None:
        if (table.key, table.size, table.changed) == (key, facts.st_size, facts.st_mtime_ns):
            with suppress(NoUpload, FileNotFoundError, Refused):  # not everybody may list parts
                return table, _listed(store, key, table.upload)
        else:
            with suppress(OSError):
                _abort(store, key, table.upload)
    kind = {"ChecksumAlgorithm": "SHA256"} if store.checksum == "sha256" else {}
    upload = store.call("create_multipart_upload", key, **kind).get("UploadId")
    if not upload:
        raise Away(f"{store.place(key)}: the answer names no upload; is this an S3 server?")
    size = part_size(facts.st_size, store.part_bytes)
    table = Table(key, facts.st_size, facts.st_mtime_ns, size, upload)
    store.tables.save(store.place(key), table)
    return table, {}


def _listed(store: S3Store, key: str, upload: str) -> Listed:
    """Return the parts that the server has; the list comes in pages."""
    found: Listed = {}
    more: dict[str, int] = {}
    while True:
        page = store.call("list_parts", key, UploadId=upload, **more)
        for row in page.get("Parts", ()):
            found[row["PartNumber"]] = (row["ETag"].strip('"'), row.get("ChecksumSHA256", ""))
        if not page.get("IsTruncated"):
            return found
        more = {"PartNumberMarker": page["NextPartNumberMarker"]}


def _send(
    store: S3Store,
    handle: int,
    table: Table,
    there: Listed,
    progress: Progress,
) -> str:
    """Send the parts that are missing, side by side, and return the file's SHA-256, hex."""
    whole, lock, failed = hashlib.sha256(), threading.Lock(), threading.Event()
    waiting: list[Future[None]] = []

    def send(number: int, part: bytes | Slice, length: int) -> None:
        try:
            if not failed.is_set():
                row = _send_part(store, table, number, part)
                with lock:
                    table.parts[str(number)] = row
                    store.tables.save(store.place(table.key), table)
                progress(length)
        except BaseException:
            failed.set()
            raise
        finally:
            store.slots.release()

    for number, start in enumerate(range(0, table.size, table.part_bytes), 1):
        length = min(table.part_bytes, table.size - start)
        store.slots.acquire()
        if failed.is_set():
            store.slots.release()
            break
        try:
            part = read_part(handle, start, length)
            have = number in there and _same(part, there[number], table, number)
        except BaseException:
            store.slots.release()
            failed.set()
            for future in waiting:  # they read the file that the caller is about to close
                future.exception()
            raise
        if have:
            store.slots.release()
            progress(length)
        else:
            # A slice has a position of its own, so that the one being sent is another.
            sent = part if isinstance(part, bytes) else Slice(handle, start, length)
            waiting.append(store.pool.submit(send, number, sent, length))
        digest_of(part, whole)  # while the others send: hashing lets go of the interpreter
    for future in waiting:
        future.exception()
    for future in waiting:
        future.result()
    return whole.hexdigest()


def _same(part: bytes | Slice, listed: tuple[str, str], table: Table, number: int) -> bool:
    """Say whether the server has this part; if so, the table knows it then, too.

    The answer to a part may have been lost with the process that sent it, so that what the server
    lists counts: its ETag, if that is an MD5, or its checksum.
    """
    tag, told = listed
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    digest_of(part, sha256, md5)
    known = table.parts.get(str(number))
    if known and known[0] == tag and known[1] == sha256.hexdigest():
        return True
    if told == in_base64(sha256.digest()) or (not told and tag == md5.hexdigest()):
        table.parts[str(number)] = [tag, sha256.hexdigest(), ""]
        return True
    return False


def _send_part(store: S3Store, table: Table, number: int, part: bytes | Slice) -> list[str]:
    """Send one part and return its row of the table."""
    if isinstance(part, bytes):
        digests = Digests(part)
    else:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        digest_of(part, sha256, md5)
        digests = Digests(sha256=sha256.digest(), md5=md5.digest())

    def send() -> list[str]:
        if isinstance(part, Slice):
            part.seek(0)
        answer = store.client.upload_part(
            Bucket=store.bucket, Key=store.name(table.key), UploadId=table.upload,
            PartNumber=number, Body=part, **store.proof(digests),
        )  # fmt: skip
        proven = store.proven(answer, digests)
        return [tag_of(answer), digests.sha256.hex(), "" if proven else UNPROVEN]

    return retrying(f"{store.place(table.key)} part {number}", send)


def _complete(store: S3Store, table: Table, whole: str) -> str:
    """Make the parts one object and return its tag.

    It is proven by the server's checksum over the parts' own, by the ETag that follows from
    theirs, or, where it tells neither, by reading it back.
    """
    key = table.key
    numbers = sorted(map(int, table.parts))
    rows = [table.parts[str(number)] for number in numbers]
    sums = [bytes.fromhex(row[1]) for row in rows]
    parts: list[dict[str, Any]] = [
        {"PartNumber": n, "ETag": row[0]} for n, row in zip(numbers, rows, strict=True)
    ]
    if store.checksum == "sha256":
        parts = [p | {"ChecksumSHA256": in_base64(s)} for p, s in zip(parts, sums, strict=True)]
    try:
        answer = store.call(
            "complete_multipart_upload",
            key,
            UploadId=table.upload,
            MultipartUpload={"Parts": parts},
        )
    except NoUpload:
        answer = {}  # a try before may have succeeded and its answer been lost: the object tells
    except Refused:
        store.tables.forget(store.place(key))  # the server does not know our parts: once more
        raise
    told = str(answer.get("ChecksumSHA256", "")).partition("-")[0]
    try:
        if told:
            if told != in_base64(hashlib.sha256(b"".join(sums)).digest()):
                raise Away(f"{store.place(key)}: the server made another object of the parts")
        elif any(row[2] for row in rows) or tag_of(answer) != _joined([row[0] for row in rows]):
            store.read_back(key, whole)
    except Away:
        store.tables.forget(store.place(key))
        raise
    found = (entry.tag for entry in store.list(key) if entry.key == key)
    return tag_of(answer) or next(found, "")


def _joined(tags: list[str]) -> str:
    """Return the ETag of an object of parts: MD5 over their MD5s, which are their ETags, and count.

    That is what S3 and most servers do; where a tag is no MD5 the result is an empty text.
    """
    try:
        joined = b"".join(bytes.fromhex(tag) for tag in tags)
    except ValueError:
        return ""
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(tags)}"


def unfinished(store: S3Store, prefix: str) -> Iterator[tuple[str, Entry]]:
    """Yield (upload id, key and start) of the interrupted uploads below a prefix."""
    start = f"{store.prefix}/{prefix}".lstrip("/")
    more: dict[str, str] = {}
    while True:
        try:
            page = store.trying(
                prefix,
                lambda: store.client.list_multipart_uploads(
                    Bucket=store.bucket,
                    Prefix=start,
                    **more,  # noqa: B023
                ),
            )
        except NoUpload:  # how rclone says that there is none
            return
        if "Bucket" not in page:
            raise Away(f"{store.place(prefix)}: the answer is no list; is this an S3 server?")
        for row in page.get("Uploads", ()):
            key = row["Key"][len(store.prefix) + 1 if store.prefix else 0 :]
            if key.startswith(prefix) and is_key(key):
                yield row["UploadId"], Entry(key, 0, modified=row["Initiated"].timestamp())
        if not page.get("IsTruncated"):
            return
        more = {"KeyMarker": page["NextKeyMarker"]}
        if page.get("NextUploadIdMarker"):
            more["UploadIdMarker"] = page["NextUploadIdMarker"]


def abort(store: S3Store, prefix: str, before: float) -> int:
    """Abort the uploads begun before that time, but for those whose table is here."""
    count = 0
    for upload, entry in list(unfinished(store, prefix)):
        table = store.tables.load(store.place(entry.key))
        if entry.modified < before and not (table and table.upload == upload):
            _abort(store, entry.key, upload)
            count += 1
    return count


def _abort(store: S3Store, key: str, upload: str) -> None:
    with suppress(NoUpload, FileNotFoundError):
        store.call("abort_multipart_upload", key, UploadId=upload)
