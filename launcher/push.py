"""Owns the way of a folder into a store as a committed set: what may go, what is there, sending.

Must not know what the files are (a model, a data set), nor talk to a person.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jobs import layout
from jobs.access import Access
from jobs.commits import Manifest, commit, read_manifest
from jobs.errors import BadData
from jobs.stores import PART, Entry, FileStore, Progress, Store, Stored, check_key, sha256_of
from launcher import storage
from launcher.errors import Forbidden, Misconfigured, NameTaken, NotFound, Usage
from launcher.receipts import Sent

_OWN = (layout.MANIFEST, layout.COMMITTED)
"""Files of a set that the commit itself writes."""
_ELSEWHERE = "push to another URL"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a set goes: a store and the set's prefix in it."""

    store: Store
    prefix: str

    @property
    def url(self) -> str:
        """The set's address."""
        return f"{self.store.url.rstrip('/')}/{self.prefix}"


def place(url: str, how: Access) -> Place:
    """Return the place that a URL names.

    Raises:
        Usage: it names a whole bucket or disk.
        Misconfigured: it is no address.
    """
    store = storage.opened(url, how)
    if isinstance(store, FileStore):
        parent, name = str(store.root.parent), store.root.name
    else:
        parent, _, name = url.rstrip("/").rpartition("/")
    if not name or parent in ("s3:/", "s3:"):
        raise Usage(f"{url}: names no folder", f"{url.rstrip('/')}/name")
    return Place(storage.opened(parent, how), name)


def check_apart(where: Place, folder: Path) -> None:
    """Refuse a place inside the folder, which would grow while it is read, and the reverse.

    Raises:
        Misconfigured: one lies in the other.
    """
    if not isinstance(where.store, FileStore):
        return
    there, here = (where.store.root / where.prefix).resolve(), folder.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise Misconfigured(f"{where.url}: {folder} and it lie in one another", _ELSEWHERE)


def survey(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by path below it; what cannot be pushed as it is, is refused.

    Raises:
        NotFound: there is no such folder, nothing in it, or a link to nothing.
        Forbidden: a file cannot be read.
        Misconfigured: a link out of the folder or to a folder, a device, or a name no store takes.
    """
    try:
        there = folder.exists()
    except OSError as error:  # longer than a name may be
        raise NotFound(f"{str(folder)[:80]}...: {error.strerror}") from error
    if not there:
        raise NotFound(f"{folder}: no such folder")
    if not folder.is_dir():
        raise Misconfigured(f"{folder}: is a file, not a folder", "push wants a folder")
    found = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    if not found:
        raise NotFound(f"{folder}: holds no file", "there is nothing to push")
    root = folder.resolve()
    for name, path in found.items():
        _check_name(name, path)
        _check_file(path, root)
    return dict(sorted(found.items()))


def committed(where: Place, files: dict[str, Path], progress: Progress) -> bool:
    """Return whether the place holds exactly these files, committed; they are read and compared.

    Raises:
        NameTaken: it holds anything else, but what an interrupted push of the folder has left.
    """
    there = {
        entry.key.removeprefix(f"{where.prefix}/"): entry
        for entry in where.store.list(f"{where.prefix}/")
    }
    if isinstance(where.store, FileStore) and (where.store.root / where.prefix).is_file():
        raise NameTaken(f"{where.url}: is a file", _ELSEWHERE)
    if layout.COMMITTED not in there:
        strange = sorted(there.keys() - files.keys() - {layout.MANIFEST})
        if strange:
            raise NameTaken(
                f"{where.url}: holds {strange[0]!r}, which is not of this folder", _ELSEWHERE
            )
        return False
    try:
        manifest = read_manifest(where.store, where.prefix)
    except BadData as error:
        raise NameTaken(str(error), _ELSEWHERE) from error
    other = _difference(manifest, files, progress)
    if other:
        raise NameTaken(f"{where.url}: holds another set: {other}", _ELSEWHERE)
    return True


def send(where: Place, folder: Path, files: dict[str, Path], progress: Progress) -> Manifest:
    """Upload the files and commit them; what an interrupted call has sent is not sent again.

    Raises:
        Misconfigured: a file changed while it was read.
        OSError: the store, or a file, failed; the same call again goes on.
    """
    sent = Sent(folder, where.url)
    there = {entry.key: entry for entry in where.store.list(f"{where.prefix}/")}
    names = {f"{where.prefix}/{name}": name for name in files}
    relay = cast("Store", _Remembering(where.store, sent, there, names))
    # Whoever stages the set meanwhile must not take half of it for the whole.
    mark = where.prefix + layout.PUSHING
    where.store.write(mark, b"")
    manifest = commit(relay, where.prefix, folder, progress=progress)
    where.store.delete(mark)
    sent.forget()
    return manifest


class _Remembering:
    """A store whose `put` skips what it has proven to hold already; all else is the store's own."""

    def __init__(
        self, store: Store, sent: Sent, there: dict[str, Entry], names: dict[str, str]
    ) -> None:
        self._store, self._sent, self._there, self._names = store, sent, there, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, path: Path, progress: Progress) -> Stored:
        before = path.stat()
        name = self._names.get(key)
        if name is None:
            raise Misconfigured(f"{path}: appeared while the folder was read", "try again")
        proof = self._sent.proof(name, before)
        if proof is not None and self._holds(key, proof):
            progress(proof.size)
            return proof
        stored = self._store.put(key, path, progress)
        after = path.stat()
        now, then = (after.st_size, after.st_mtime_ns), (before.st_size, before.st_mtime_ns)
        if now != then or stored.size != after.st_size:
            raise Misconfigured(
                f"{path}: changed while it was read", "try again when it is at rest"
            )
        self._sent.add(name, before, stored)
        return stored

    def _holds(self, key: str, proof: Stored) -> bool:
        entry = self._there.get(key)
        if entry is None or entry.size != proof.size:
            return False
        if entry.tag and proof.tag:
            return entry.tag == proof.tag
        return self._store.sha256(key) == proof.sha256


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise Forbidden(f"{error.filename}: cannot be read: {error.strerror}") from error

    for place_, folders, names in os.walk(folder, onerror=refuse):
        here = Path(place_)
        for name in folders:
            if (here / name).is_symlink():
                raise Misconfigured(f"{here / name}: is a link to a folder", _COPY)
            if name.startswith(PART):
                raise Misconfigured(
                    f"{here / name}: is the rest of an interrupted transfer", "finish or delete it"
                )
        yield from (here / name for name in names)


_COPY = "push a copy without links: cp -rL FOLDER COPY"


def _check_name(name: str, path: Path) -> None:
    if name in _OWN:
        raise Misconfigured(
            f"{path}: a set has a file of that name of its own", "push a folder without it"
        )
    try:
        check_key(name).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise Misconfigured(f"{str(path)!r}: is no name that a store takes", "rename it") from error
    if path.name.startswith(PART):
        raise Misconfigured(
            f"{path}: is the rest of an interrupted transfer", "finish or delete it"
        )


def _check_file(path: Path, root: Path) -> None:
    try:
        if path.is_symlink():
            target = path.resolve(strict=True)
            if not target.is_relative_to(root):
                raise Misconfigured(f"{path}: is a link out of the folder, to {target}", _COPY)
        if not stat.S_ISREG(path.stat().st_mode):
            raise Misconfigured(
                f"{path}: is neither a file nor a folder", "push a folder without it"
            )
        path.open("rb").close()
    except PermissionError as error:
        raise Forbidden(f"{path}: cannot be read: {error.strerror}") from error
    except (OSError, RuntimeError) as error:  # links to nothing; links in a circle
        raise NotFound(f"{path}: is a link to nothing", "remove it") from error


def _difference(manifest: Manifest, files: dict[str, Path], progress: Progress) -> str:
    """Return what distinguishes the files from a set, or nothing; sizes first, then digests."""
    rows = {row.path: row for row in manifest.files}
    for name in sorted(rows.keys() ^ files.keys()):
        return f"{name!r} is {'not here' if name in rows else 'not in it'}"
    for name, path in files.items():
        if path.stat().st_size != rows[name].bytes:
            return f"{name!r} is another file there"
    for name, path in files.items():
        if sha256_of(path) != rows[name].sha256:
            return f"{name!r} is another file there"
        progress(rows[name].bytes)
    return ""
