"""Owns object storage behind one protocol, and the store that is a directory.

Must not know what a run or a commit is, nor how S3 is spoken (s3.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from jobs.access import Access
from jobs.errors import BadSpec

Progress = Callable[[int], None]
"""Takes the bytes moved since the last call, from any thread."""


def unwatched(_moved: int) -> None:
    """Ignore the progress."""


class Conflict(Exception):
    """The object is not what the caller believed it to be."""


class Refused(OSError):
    """The store has answered, and the same request will be answered the same: mend a setting."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its key below the store's root, size in bytes, tag and time of change."""

    key: str
    size: int
    tag: str = ""
    """What the store calls this version of it (S3: ETag); empty where there is none."""
    modified: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that was just written and that the store has proven to hold."""

    size: int
    sha256: str
    tag: str = ""


class Store(Protocol):
    """Flat keys to bytes. Each write is atomic: a reader sees the old object or the new one.

    A missing object is `FileNotFoundError`, a request that can never succeed `Refused`; any other
    failure is an `OSError`, so that a caller can retry without knowing which store it talks to.
    """

    url: str

    def put(self, key: str, path: Path, progress: Progress = unwatched) -> Stored:
        """Store the file under `key`; what an interrupted call has sent is not sent again.

        Returns only when the store has proven that it holds these bytes.
        """

    def write(self, key: str, data: bytes) -> Stored:
        """Store `data` under `key`, proven like `put`."""

    def swap(self, key: str, old: bytes | None, new: bytes) -> None:
        """Replace `old` (None: no object) by `new`, or raise `Conflict`."""

    def get(self, key: str, path: Path, progress: Progress = unwatched) -> str:
        """Copy the object to the file `path`, which appears whole or not at all.

        Returns its SHA-256, hex. What an interrupted call has fetched is not fetched again.
        """

    def read(self, key: str) -> bytes:
        """Return the object's bytes."""

    def sha256(self, key: str) -> str:
        """Return the digest of the object's bytes as the store gives them back, hex."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects whose key starts with `prefix`, in order of key."""

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""

    def unfinished(self, prefix: str) -> Sequence[Entry]:
        """Return the interrupted uploads to keys that start with `prefix`, with their start."""

    def abort(self, prefix: str, before: float) -> int:
        """Forget interrupted uploads begun before that time (s since the epoch); how many."""


PART = ".part-"
"""How the names of files begin that are not whole yet; nobody but their writer looks at them."""


def durable(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_key(key: str) -> str:
    """Return a legal key: no empty part, no `.` and `..`, no control characters.

    Raises:
        ValueError: it is not.
    """
    bad = any(part in ("", ".", "..") for part in key.split("/"))
    if bad or any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        raise ValueError(f"illegal key {key!r}")
    return key


def is_key(key: str) -> bool:
    """Say whether the key is legal; a bucket may hold others: consoles write `folder/`."""
    try:
        return bool(check_key(key))
    except ValueError:
        return False


def _visible(root: Path, path: Path) -> bool:
    return not any(part.startswith(PART) for part in path.relative_to(root).parts)


class FileStore:
    """A directory; each write is temporary file, fsync, rename, fsync of the directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*check_key(key).split("/"))

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PART, dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            part.chmod(0o644)
            yield part
            durable(part)
            part.replace(path)
            durable(path.parent)
        finally:
            part.unlink(missing_ok=True)

    def put(self, key: str, path: Path, progress: Progress = unwatched) -> Stored:
        with self._replacing(self._path(key)) as part:
            shutil.copyfile(path, part)
        progress(part_size := self._path(key).stat().st_size)
        return self._proven(key, part_size, sha256_of(path))

    def write(self, key: str, data: bytes) -> Stored:
        with self._replacing(self._path(key)) as part:
            part.write_bytes(data)
        return self._proven(key, len(data), hashlib.sha256(data).hexdigest())

    def _proven(self, key: str, size: int, sha256: str) -> Stored:
        if self.sha256(key) != sha256:
            raise OSError(f"{self.url}/{key}: the store gives back other bytes than were written")
        return Stored(size, sha256)

    def swap(self, key: str, old: bytes | None, new: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lock file, since a directory has no conditional rename; removing it would race.
        with (path.parent / f"{PART}{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = path.read_bytes() if path.exists() else None
            if now != old:
                raise Conflict(key)
            self.write(key, new)

    def get(self, key: str, path: Path, progress: Progress = unwatched) -> str:
        source = self._path(key)
        if not source.is_file():
            raise FileNotFoundError(key)
        with self._replacing(path) as part:
            shutil.copyfile(source, part)
            found = sha256_of(part)
        progress(path.stat().st_size)
        return found

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except NotADirectoryError as error:  # a part of the key is an object: no such object
            raise FileNotFoundError(key) from error

    def sha256(self, key: str) -> str:
        return sha256_of(self._path(key))

    def list(self, prefix: str) -> Iterator[Entry]:
        folder = self.root.joinpath(*prefix.split("/")[:-1]) if "/" in prefix else self.root
        found = (p for p in folder.rglob("*") if p.is_file() and _visible(self.root, p))
        entries = [entry for path in found for entry in self._entry(path)]
        yield from sorted((e for e in entries if e.key.startswith(prefix)), key=lambda e: e.key)

    def _entry(self, path: Path) -> Iterator[Entry]:
        with suppress(FileNotFoundError):  # deleted since it was found
            facts = path.stat()
            key = path.relative_to(self.root).as_posix()
            yield Entry(key, facts.st_size, modified=facts.st_mtime)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def unfinished(self, prefix: str) -> Sequence[Entry]:  # noqa: ARG002
        return ()  # half a file is removed by whoever writes it

    def abort(self, prefix: str, before: float) -> int:  # noqa: ARG002
        return 0


def sha256_of(path: Path) -> str:
    """Return the digest of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_store(url: str, access: Access | None = None, scratch: Path | None = None) -> Store:
    """Return the store behind a URL (s3://bucket/prefix, file:///path) or a plain path.

    Args:
        url: where it is.
        access: how an object store is spoken to; none means as the environment says.
        scratch: folder for the part tables of interrupted uploads; none means in memory.

    Raises:
        BadSpec: no address at all, or a scheme this version cannot write to.
    """
    try:
        parts = urlsplit(url)
        local = parts.scheme == "file" and parts.netloc in ("", "localhost")
        text = unquote(parts.path) if local else url
        path = Path(text).expanduser()
    except (ValueError, RuntimeError) as error:  # brackets without an IP in them; no such ~user
        raise BadSpec(f"store {url!r}: is no address: {error}") from error
    if parts.scheme == "s3" and url.startswith("s3://"):
        from jobs.s3 import S3Store

        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix, access or Access.read(), scratch)
    if not url or "\0" in text or (local and not text.startswith("/")):
        raise BadSpec(f"store {url!r}: is no address of a directory (file:///path or a path)")
    if local or parts.scheme == "":
        return FileStore(path.absolute())
    raise BadSpec(f"store {url!r}: is neither s3://bucket/prefix, file:///path nor a path")
