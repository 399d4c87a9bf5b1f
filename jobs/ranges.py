"""Owns the download of an object by ranges, side by side, and going on with an interrupted one.

Beside the file lies `.part-<name>`, and `.part-<name>.json` with what of it is whole. Must not know
what the object is.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.parts import CHUNK, tag_of
from jobs.s3faults import Away, Outdated
from jobs.stores import PART, Progress, Refused

if TYPE_CHECKING:
    from jobs.s3 import S3Store


@dataclass
class Partial:
    """What is known of a download; valid for exactly this version of the object."""

    tag: str
    size: int
    part_bytes: int
    done: list[int] = field(default_factory=list)
    """Numbers of the ranges that are on disk, from 0."""


def get(store: S3Store, key: str, path: Path, progress: Progress) -> str:
    """Copy an object to `path`, which appears whole, and return its SHA-256, hex.

    Raises:
        FileNotFoundError: no such object.
        Refused: as S3Store.
        OSError: the server was away, or the disk is full; the same call again goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{PART}{path.name}")
    notes = path.with_name(f"{PART}{path.name}.json")
    handle = os.open(draft, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        known = _load(notes) if notes.exists() else None
        try:
            digest = _fetch(store, key, handle, known, notes, progress)
        except Outdated:  # the object was replaced since the last call, or just now
            notes.unlink(missing_ok=True)
            digest = _fetch(store, key, handle, None, notes, progress)
    except (FileNotFoundError, Refused):
        draft.unlink(missing_ok=True)
        notes.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    # Not flushed: what a crash of the machine spoils can be fetched again.
    draft.replace(path)
    notes.unlink(missing_ok=True)
    return digest


def _fetch(
    store: S3Store, key: str, handle: int, known: Partial | None, notes: Path, progress: Progress
) -> str:
    """Fetch what is missing and return the digest of the whole."""
    partial = known
    if (
        partial is None
        or partial.part_bytes != store.part_bytes
        or os.fstat(handle).st_size != partial.size
    ):
        partial = Partial("", -1, store.part_bytes)
        os.ftruncate(handle, 0)
        _range(store, key, handle, partial, 0)  # tells size and tag, which the others need
        if partial.size > store.part_bytes:
            os.ftruncate(handle, partial.size)
            _note(notes, partial)
    lock, failed, whole = threading.Lock(), threading.Event(), hashlib.sha256()

    def fetch(number: int) -> None:
        try:
            if not failed.is_set():
                _range(store, key, handle, partial, number)
                with lock:
                    partial.done.append(number)
                    _note(notes, partial)
        except BaseException:
            failed.set()
            raise

    numbers = range(-(-partial.size // partial.part_bytes))
    waiting: dict[int, Future[None]] = {
        number: store.pool.submit(fetch, number) for number in numbers if number not in partial.done
    }
    try:
        for number in numbers:
            if number in waiting:
                waiting[number].result()
            length = _digest(handle, number * partial.part_bytes, partial, whole)
            progress(length)
    except BaseException:
        failed.set()
        for future in waiting.values():
            if not future.cancel():
                future.exception()
        raise
    return whole.hexdigest()


def _range(store: S3Store, key: str, handle: int, partial: Partial, number: int) -> None:
    """Fetch one range into its place; the first one also says what the object is."""
    start = number * partial.part_bytes
    stop = start + partial.part_bytes
    if partial.size >= 0:
        stop = min(stop, partial.size)
    at = start

    def fetch() -> None:
        nonlocal at, stop
        try:
            answer = store.client.get_object(
                Bucket=store.bucket, Key=store.name(key), Range=f"bytes={at}-{stop - 1}"
            )
        except Exception as error:
            if _is_empty(error):  # no byte to begin with: the object is empty
                partial.size, partial.tag, stop = 0, "", 0
                return
            raise
        tag, size = tag_of(answer), _size(answer)
        if not tag:
            raise Away(f"{store.place(key)}: the answer was cut")
        if partial.size < 0:
            partial.tag, partial.size = tag, size
            stop = min(stop, size)
        elif (tag, size) != (partial.tag, partial.size):
            raise Outdated(f"{store.place(key)}: was replaced while it was read")
        if "ContentRange" not in answer:
            at = 0  # a server that knows no ranges sends all of it, each time
            stop = size
        body, buffer = answer["Body"], memoryview(bytearray(min(CHUNK, max(1, stop - at))))
        while at < stop and (got := body.readinto(buffer[: stop - at])):
            at += _write(handle, buffer[:got], at)
        body.close()
        if at < stop:
            raise Away(f"{store.place(key)}: the answer ended {stop - at} bytes too early")

    store.trying(key, fetch)
    if number == 0:
        partial.done.append(0)


def _write(handle: int, data: memoryview, at: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(handle, data[written:], at + written)
    return written


def _digest(handle: int, start: int, partial: Partial, whole: hashlib._Hash) -> int:
    """Feed a range that is on disk to the digest; return its length."""
    stop = min(start + partial.part_bytes, partial.size)
    at = start
    while at < stop:
        chunk = os.pread(handle, min(4 * CHUNK, stop - at), at)
        if not chunk:
            raise Away("the file that is being fetched was cut")
        whole.update(chunk)
        at += len(chunk)
    return stop - start


def _size(answer: dict[str, object]) -> int:
    """Return the size of the whole object."""
    told = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(told) if told.isdigit() else int(str(answer["ContentLength"]))


def _is_empty(error: Exception) -> bool:
    answer = getattr(error, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") in (
        "InvalidRange",
        "416",
    )


def _load(notes: Path) -> Partial | None:
    with suppress(OSError, ValueError, TypeError):
        return Partial(**json.loads(notes.read_bytes()))
    return None


def _note(notes: Path, partial: Partial) -> None:
    if partial.size <= partial.part_bytes:
        return
    draft = notes.with_name(f"{notes.name}.new")
    draft.write_text(json.dumps(asdict(partial)), encoding="utf-8")
    draft.replace(notes)
