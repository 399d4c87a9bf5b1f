"""Owns the download of an object by ranges, side by side, and going on with an interrupted one.

Must not know what the object is, how an answer looks (bodies.py), nor what is on disk (drafts.py).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import bodies, drafts
from jobs.drafts import Known
from jobs.parts import tag_of
from jobs.s3faults import Away, Outdated
from jobs.stores import PART, Progress, Refused

if TYPE_CHECKING:
    from jobs.s3 import S3Store

READ_BYTES = 4 << 20
"""What is read between two reports of progress."""


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


@dataclass
class Piece:
    """A range on its way."""

    start: int
    memory: memoryview
    length: int
    """Bytes of the memory that it needs."""
    got: int = 0
    """Bytes that have come."""

    @property
    def data(self) -> memoryview:
        """What has come."""
        return self.memory[: self.got]


def get(store: S3Store, key: str, path: Path, progress: Progress) -> str:
    """Copy an object to `path`, which appears whole, and return its SHA-256, hex.

    Raises:
        FileNotFoundError: no such object.
        Refused: as S3Store, or another process is fetching to the same path.
        OSError: the server was away, or the disk is full; the same call again goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{PART}{path.name}")
    notes = path.with_name(f"{PART}{path.name}.json")
    handle = drafts.open_draft(draft)
    try:
        known = drafts.load(notes)
        try:
            digest = _Download(store, key, handle, known, notes, progress).run()
        except Outdated:  # the object was replaced since the last call, or just now
            digest = _Download(store, key, handle, Known(), notes, progress).run()
        # Not flushed: what a crash of the machine spoils can be fetched again.
        draft.replace(path)
        notes.unlink(missing_ok=True)
    except (FileNotFoundError, Refused) as error:
        # A token that has expired is renewed, and what came until then is worth keeping.
        if isinstance(error, FileNotFoundError) or not os.fstat(handle).st_size:
            draft.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return digest


class _Download:
    """One object on its way into an open draft, whose length is all that has to be remembered."""

    def __init__(
        self,
        store: S3Store,
        key: str,
        handle: int,
        known: Known,
        notes: Path,
        progress: Progress,
    ) -> None:
        self.store, self.key, self.handle = store, key, handle
        self.known, self.notes, self.progress = known, notes, progress
        self.place = store.place(key)
        self.whole = hashlib.sha256()
        self.done = 0
        self.stopped = threading.Event()

    def run(self) -> str:
        """Append what is missing, in order, and return the digest of the whole."""
        if self.known.size < 0:
            self.notes.unlink(missing_ok=True)
        self.done = drafts.digest(self.handle, self.known.size, self.whole)
        self.progress(self.done)
        with ThreadPoolExecutor(1) as self.writer:  # starts no thread before it is used
            if self.known.size < 0:
                self._first()
            self._rest()
        return self.whole.hexdigest()

    def _first(self) -> None:
        """Fetch the first range, which tells how many there are."""
        memory = self.store.buffers.take(wait=True)
        assert memory is not None
        piece = Piece(0, memory, len(memory))
        try:
            self._range(piece)
            self._take(piece)
        except Away:
            self._keep(piece)
            raise
        finally:
            self.store.buffers.give(memory)

    def _rest(self) -> None:
        """Fetch the other ranges, side by side, as far as there is memory for them."""
        size, asked = self.known.size, self.done
        coming: deque[tuple[Future[None], Piece]] = deque()
        if self.done < size:
            drafts.note(self.notes, self.known)
        try:
            while self.done < size:
                while asked < size:
                    memory = self.store.buffers.take(wait=not coming)
                    if memory is None:
                        break
                    piece = Piece(asked, memory, min(len(memory), size - asked))
                    asked += piece.length
                    coming.append((self.store.pool.submit(self._range, piece), piece))
                future, piece = coming[0]
                future.result()
                self._take(piece)
                coming.popleft()
                self.store.buffers.give(piece.memory)
        except Away:
            self._keep(coming[0][1])
            raise
        finally:
            self.stopped.set()
            for future, piece in coming:
                if not future.cancel():
                    future.exception()
                self.store.buffers.give(piece.memory)

    def _take(self, piece: Piece) -> None:
        """Append a range that is whole."""
        # Hashing and writing both let go of the interpreter; only large ranges are worth a thread.
        if piece.got > drafts.WRITE_BYTES:
            written = self.writer.submit(drafts.write, self.handle, piece.data)
            self.whole.update(piece.data)
            written.result()
        else:
            self.whole.update(piece.data)
            drafts.write(self.handle, piece.data)
        self.done += piece.got

    def _keep(self, piece: Piece) -> None:
        """Append the head of a range that broke off, so that the next call goes on behind it."""
        if self.known.size > 0:
            with suppress(OSError):
                drafts.write(self.handle, piece.data)
                drafts.note(self.notes, self.known)

    def _range(self, piece: Piece) -> None:
        """Fetch a range into its memory.

        A line that breaks again and again gets on as long as each round of tries brings something.
        """
        while True:
            before = piece.got
            try:
                return self.store.trying(self.key, lambda: self._ask(piece))
            except Away:
                if piece.got == before or self.stopped.is_set():
                    raise

    def _ask(self, piece: Piece) -> None:
        if self.stopped.is_set():
            return
        at = piece.start + piece.got
        try:
            answer = self.store.client.get_object(
                Bucket=self.store.bucket,
                Key=self.store.name(self.key),
                Range=f"bytes={at}-{piece.start + piece.length - 1}",
            )
        except Exception as error:
            if not bodies.is_empty(error):
                raise
            self.known.learn("", 0, self.place)  # no byte to begin with: the object is empty
            piece.length = 0
            return
        body = answer["Body"]
        try:
            begin, size = bodies.frame(answer, at, self.place)
            self.known.learn(tag_of(answer), size, self.place)
            piece.length = min(piece.length, size - piece.start)
            bodies.skip(body, at - begin)
            self._fill(piece, bodies.reader(body))
        except (Away, Outdated):
            raise
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"{self.place}: {error or type(error).__name__}") from error
        finally:
            bodies.leave(body)
        if piece.got < piece.length and not self.stopped.is_set():
            missing = piece.length - piece.got
            raise Away(f"{self.place}: the answer ended {missing} bytes too early")

    def _fill(self, piece: Piece, read: Callable[[memoryview], int]) -> None:
        while piece.got < piece.length and not self.stopped.is_set():
            stop = min(piece.length, piece.got + READ_BYTES)
            more = read(piece.memory[piece.got : stop])
            if not more:
                return
            piece.got += more
            self.progress(more)
