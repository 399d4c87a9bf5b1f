"""Owns the draft of a download on disk, beside the file that it becomes.

`.part-<name>` has the object's first bytes, `.part-<name>.json` says of which object. Must not
fetch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.parts import CHUNK
from jobs.s3faults import Outdated
from jobs.stores import Refused

WRITE_BYTES = 256 << 10
"""Written at once: larger writes take new memory for the page cache where smaller ones find some
that is warm, which is twice as fast on a virtual machine (BENCHMARKS.md)."""


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


def open_draft(draft: Path) -> int:
    """Open the draft for nobody but us.

    Raises:
        Refused: another process has it.
    """
    while True:
        handle = os.open(draft, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if draft.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass  # whoever had it has just made it the file
        except BlockingIOError as error:
            os.close(handle)
            raise Refused(f"{draft}: another process is fetching it; wait for that one") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def write(handle: int, data: memoryview) -> None:
    """Append bytes."""
    while data:
        data = data[os.write(handle, data[:WRITE_BYTES]) :]


def digest(handle: int, size: int, whole: hashlib._Hash) -> int:
    """Feed what is on disk to the digest, leave the file's position behind it, return its length.

    A draft longer than the object is none of it; the last byte of a whole one is asked for again,
    to see that the object is still the same.
    """
    length = os.fstat(handle).st_size
    length = length if length < size else size - 1 if length == size > 0 else 0
    os.ftruncate(handle, length)
    os.lseek(handle, 0, os.SEEK_SET)
    while chunk := os.read(handle, 4 * CHUNK):
        whole.update(chunk)
    return length


def load(notes: Path) -> Known:
    """Return what the notes of an interrupted download say; nothing if they can't be read."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        known = Known(**json.loads(notes.read_bytes()))
        if known.tag and type(known.size) is int and known.size > 0:
            return known
    return Known()


def note(notes: Path, known: Known) -> None:
    """Write down which object the draft is of."""
    notes.write_text(json.dumps(asdict(known)), encoding="utf-8")
