"""Owns the parts of a file on their way: an interrupted upload's table, bytes, digests.

Must not send anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MOST_PARTS = 10_000
"""S3 User Guide, "Amazon S3 multipart upload limits"."""
MOST_IN_MEMORY = 16 * 1024 * 1024
"""Bytes of a part that is read whole; a larger one is streamed, twice, from the page cache."""
CHUNK = 1 << 20


@dataclass
class Table:
    """What is known of one upload; valid for exactly this file."""

    key: str
    size: int
    changed: int
    """Modification time in ns."""
    part_bytes: int
    upload: str
    parts: dict[str, list[str]] = field(default_factory=dict)
    """Part number -> [ETag, SHA-256 of the part in hex, empty or why it is not proven]."""


class Tables:
    """The part tables of one store: files of a folder, or, without one, in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: MutableMapping[str, dict[str, Any]] = {}

    def load(self, place: str) -> Table | None:
        """Return the table of the upload to `place`; a damaged one is none."""
        try:
            if self._folder is None:
                return Table(**self._memory[place])
            return Table(**json.loads(self._path(place).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def save(self, place: str, table: Table) -> None:
        """Keep the table; it need not survive a crash of the machine, so it is not flushed."""
        if self._folder is None:
            self._memory[place] = asdict(table)
            return
        path = self._path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(asdict(table)), encoding="utf-8")
        draft.replace(path)

    def forget(self, place: str) -> None:
        """Drop the table."""
        self._memory.pop(place, None)
        if self._folder is not None:
            self._path(place).unlink(missing_ok=True)

    def _path(self, place: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"


class Digests:
    """The digests of a body, each computed when it is first wanted."""

    def __init__(self, *chunks: bytes, sha256: bytes = b"", md5: bytes = b"") -> None:
        self._chunks = chunks
        self._sha256, self._md5 = sha256, md5

    @property
    def sha256(self) -> bytes:
        """SHA-256, which S3 calls an additional checksum."""
        self._sha256 = self._sha256 or hashlib.sha256(b"".join(self._chunks)).digest()
        return self._sha256

    @property
    def md5(self) -> bytes:
        """MD5, which S3's ETag and Content-MD5 are; it proves the way, not the author."""
        if not self._md5:
            self._md5 = hashlib.md5(b"".join(self._chunks), usedforsecurity=False).digest()
        return self._md5


def part_size(size: int, least: int, most_parts: int = MOST_PARTS) -> int:
    """Return the size of a part in bytes: a multiple of `least` that needs few enough parts."""
    return least * max(1, math.ceil(size / (least * most_parts)))


class Slice(io.RawIOBase):
    """A part of an open file, as a file; for parts too large to hold in memory."""

    def __init__(self, handle: int, start: int, length: int) -> None:
        super().__init__()
        self._handle, self._start, self._length, self._at = handle, start, length, 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes: a second try begins again."""
        return True

    def tell(self) -> int:
        """Return the position in the part."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, min(self._length, base + offset))
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or as much of it as there is."""
        want = min(len(buffer), self._length - self._at)
        data = os.pread(self._handle, want, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_part(handle: int, start: int, length: int) -> bytes | Slice:
    """Return a part of a file, whole if it is small; shorter than asked if the file was cut."""
    if length > MOST_IN_MEMORY:
        return Slice(handle, start, length)
    data = os.pread(handle, length, start)
    while len(data) < length and (more := os.pread(handle, length - len(data), start + len(data))):
        data += more
    return data


def digest_of(part: bytes | Slice, *digests: Any) -> None:
    """Feed a part to hashlib's objects."""
    if isinstance(part, bytes):
        for digest in digests:
            digest.update(part)
        return
    part.seek(0)
    while chunk := part.read(CHUNK):
        for digest in digests:
            digest.update(chunk)
    part.seek(0)


def in_base64(digest: bytes) -> str:
    """Return a digest as S3's headers carry it."""
    return base64.b64encode(digest).decode()


def tag_of(answer: Mapping[str, Any]) -> str:
    """Return an ETag without its quotes."""
    return str(answer.get("ETag", "")).strip('"')
