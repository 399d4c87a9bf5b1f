"""Owns the download of an object by ranges, side by side, and going on with an interrupted one.

Beside the file lie `.part-<name>`, whose bytes are the object's first ones, and
`.part-<name>.json`, which says of which object. Must not know what the object is.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.parts import tag_of
from jobs.s3faults import Away, Outdated
from jobs.stores import PART, Progress, Refused

if TYPE_CHECKING:
    from jobs.s3 import S3Store

WRITE_BYTES = 256 << 10
READ_BYTES = 4 << 20
"""What is read between two reports of progress."""


@dataclass
class Known:
    """Which object is fetched."""

    tag: str = ""
    size: int = -1
    """Bytes; negative as long as no answer has told."""

    def learn(self, tag: str, size: int, place: str) -> None:
        """Take what an answer tells.

        Raises:
            Outdated: it is of another object than the answer before.
        """
        if self.size < 0:
            self.tag, self.size = tag, size
        elif (tag, size) != (self.tag, self.size):
            raise Outdated(f"{place}: was replaced while it was read")


class Buffers:
    """Memory for ranges, the same for all files of a store; made when it is first needed."""

    def __init__(self, count: int, size: int) -> None:
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)
        self._size = size

    def take(self, wait: bool) -> memoryview | None:
        """Return a buffer; None if all are in use and one must not wait."""
        try:
            buffer = self._free.get(block=wait)
        except queue.Empty:
            return None
        return memoryview(bytearray(self._size)) if buffer is None else buffer

    def give(self, buffer: memoryview) -> None:
        """Put a buffer back."""
        self._free.put(buffer)


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
        known = _load(notes)
        try:
            digest = _fetch(store, key, handle, known, notes, progress)
        except Outdated:  # the object was replaced since the last call, or just now
            digest = _fetch(store, key, handle, Known(), notes, progress)
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
    store: S3Store, key: str, handle: int, known: Known, notes: Path, progress: Progress
) -> str:
    """Append what is missing, in order, and return the digest of the whole."""
    whole = hashlib.sha256()
    if known.size < 0:
        notes.unlink(missing_ok=True)
    done = asked = _digest(handle, known.size, whole)
    progress(done)
    stopped = threading.Event()
    writer = ThreadPoolExecutor(1)  # starts no thread before it is used
    coming: deque[tuple[Future[int], memoryview]] = deque()

    def ask(buffer: memoryview) -> None:
        nonlocal asked
        start, asked = asked, min(asked + store.part_bytes, known.size)
        future = store.pool.submit(
            _range, store, key, start, buffer[: asked - start], known, progress, stopped
        )
        coming.append((future, buffer))

    def take(buffer: memoryview, length: int) -> None:
        nonlocal done
        # Hashing and writing both let go of the interpreter; only large ranges are worth a thread.
        written = writer.submit(_write, handle, buffer[:length]) if length > WRITE_BYTES else None
        whole.update(buffer[:length])
        if written:
            written.result()
        else:
            _write(handle, buffer[:length])
        done += length

    if known.size < 0:  # the first range tells how many there are
        first = store.buffers.take(wait=True)
        assert first is not None
        try:
            take(first, _range(store, key, 0, first, known, progress, stopped))
        finally:
            store.buffers.give(first)
        asked = done
        if done < known.size:
            notes.write_text(json.dumps(asdict(known)), encoding="utf-8")
    try:
        while done < known.size:
            while asked < known.size and (buffer := store.buffers.take(wait=not coming)):
                ask(buffer)
            future, buffer = coming[0]
            take(buffer, future.result())
            coming.popleft()
            store.buffers.give(buffer)
    finally:
        stopped.set()
        for future, buffer in coming:
            if not future.cancel():
                future.exception()
            store.buffers.give(buffer)
        writer.shutdown()
    return whole.hexdigest()


def _range(
    store: S3Store,
    key: str,
    start: int,
    buffer: memoryview,
    known: Known,
    progress: Progress,
    stopped: threading.Event,
) -> int:
    """Fill the buffer with the object's bytes from `start`; return how many there were."""
    length, got = len(buffer), 0

    def fetch() -> None:
        nonlocal length, got
        if stopped.is_set():
            return
        try:
            answer = store.client.get_object(
                Bucket=store.bucket,
                Key=store.name(key),
                Range=f"bytes={start + got}-{start + length - 1}",
            )
        except Exception as error:
            if not _is_empty(error):
                raise
            known.learn("", 0, store.place(key))  # no byte to begin with: the object is empty
            length = 0
            return
        tag, size = tag_of(answer), _size(answer)
        if not tag:
            raise Away(f"{store.place(key)}: the answer was cut")
        known.learn(tag, size, store.place(key))
        length = min(length, size - start)
        body = answer["Body"]
        try:
            if "ContentRange" not in answer:  # a server that knows no ranges sends all, each time
                _skip(body, start + got)
            read = _reader(body)
            while got < length and (more := read(buffer[got : min(length, got + READ_BYTES)])):
                got += more
                progress(more)
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"{store.place(key)}: {error or type(error).__name__}") from error
        finally:
            _leave(body)
        if got < length:
            raise Away(f"{store.place(key)}: the answer ended {length - got} bytes too early")

    store.trying(key, fetch)
    return length


def _reader(body: Any) -> Callable[[memoryview], int]:
    """Return what reads a body into memory; past urllib3, whose readinto copies all twice."""
    answer = getattr(getattr(body, "_raw_stream", None), "_fp", None)
    if isinstance(answer, http.client.HTTPResponse) and answer.length is not None:
        return answer.readinto
    readinto: Callable[[memoryview], int] = body.readinto
    return readinto


def _leave(body: Any) -> None:
    """Keep the connection for the next request if all of the body was read, else close it."""
    raw = getattr(body, "_raw_stream", None)
    answer = getattr(raw, "_fp", None)
    if raw is not None and isinstance(answer, http.client.HTTPResponse) and answer.isclosed():
        raw.release_conn()
    else:
        body.close()


def _skip(body: Any, length: int) -> None:
    while length and (passed := len(body.read(min(length, READ_BYTES)))):
        length -= passed


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data[:WRITE_BYTES]) :]


def _digest(handle: int, most: int, whole: hashlib._Hash) -> int:
    """Feed what is on disk to the digest, leave the file's position behind it, return its length.

    A draft longer than the object is none of it; the last byte of a whole one is asked for again,
    to see that the object is still the same.
    """
    length = os.fstat(handle).st_size
    length = length if length < most else most - 1 if length == most > 0 else 0
    os.ftruncate(handle, length)
    os.lseek(handle, 0, os.SEEK_SET)
    while chunk := os.read(handle, READ_BYTES):
        whole.update(chunk)
    return length


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


def _load(notes: Path) -> Known:
    """Return what the notes of an interrupted download say; nothing if they can't be read."""
    with suppress(OSError, ValueError, TypeError):
        known = Known(**json.loads(notes.read_bytes()))
        if known.tag and isinstance(known.size, int):
            return known
    return Known()
