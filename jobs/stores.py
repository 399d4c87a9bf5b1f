"""Owns object storage behind one protocol; must not know what a run or a commit is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from jobs.errors import BadSpec


class Conflict(Exception):
    """The object is not what the caller believed it to be."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its key below the store's root and its size in bytes."""

    key: str
    size: int


class Store(Protocol):
    """Flat keys to bytes. Each write is atomic: a reader sees the old object or the new one.

    A missing object is `FileNotFoundError`; any other failure is an `OSError`, so that a caller
    can retry without knowing which store it talks to.
    """

    url: str

    def put(self, key: str, path: Path) -> None:
        """Store the file at `path` under `key`."""

    def write(self, key: str, data: bytes) -> None:
        """Store `data` under `key`."""

    def swap(self, key: str, old: bytes | None, new: bytes) -> None:
        """Replace `old` (None: no object) by `new`, or raise `Conflict`."""

    def get(self, key: str, path: Path) -> None:
        """Copy the object to the file `path`, which appears whole or not at all."""

    def read(self, key: str) -> bytes:
        """Return the object's bytes."""

    def sha256(self, key: str) -> str:
        """Return the digest of the object's bytes as the store gives them back, hex."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects whose key starts with `prefix`, in order of key."""

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""


def durable(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _visible(root: Path, path: Path) -> bool:
    return not any(part.startswith(".part-") for part in path.relative_to(root).parts)


class FileStore:
    """A directory; each write is temporary file, fsync, rename, fsync of the directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"illegal key {key!r}")
        return self.root.joinpath(*parts)

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
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

    def put(self, key: str, path: Path) -> None:
        with self._replacing(self._path(key)) as part:
            shutil.copyfile(path, part)

    def write(self, key: str, data: bytes) -> None:
        with self._replacing(self._path(key)) as part:
            part.write_bytes(data)

    def swap(self, key: str, old: bytes | None, new: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lock file, since a directory has no conditional rename; removing it would race.
        with (path.parent / f".part-{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = path.read_bytes() if path.exists() else None
            if now != old:
                raise Conflict(key)
            self.write(key, new)

    def get(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        source = self._path(key)
        if not source.is_file():
            raise FileNotFoundError(key)
        with self._replacing(path) as part:
            shutil.copyfile(source, part)

    def read(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def sha256(self, key: str) -> str:
        with self._path(key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def list(self, prefix: str) -> Iterator[Entry]:
        folder = self.root.joinpath(*prefix.split("/")[:-1]) if "/" in prefix else self.root
        found = (p for p in folder.rglob("*") if p.is_file() and _visible(self.root, p))
        entries = (Entry(p.relative_to(self.root).as_posix(), p.stat().st_size) for p in found)
        yield from sorted((e for e in entries if e.key.startswith(prefix)), key=lambda e: e.key)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)


def open_store(url: str) -> Store:
    """Return the store behind a URL or a plain path.

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
    if not url or "\0" in text or (local and not text.startswith("/")):
        raise BadSpec(f"store {url!r}: is no address of a directory (file:///path or a path)")
    if local or parts.scheme == "":
        return FileStore(path.absolute())
    raise BadSpec(f"store {url!r}: this version writes to directories (file:///path or a path)")
