"""Owns the commit protocol: manifest, verification, the marker written last.

Must not know what the files mean. Order of a commit: files, each proven by the store's checksum or
read back; `MANIFEST.json`; the store's own list compared; the claim checked; `COMMITTED`. Readers
trust only sets that have `COMMITTED`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs import layout
from jobs.errors import BadData
from jobs.stores import Progress, Store, Stored, sha256_of, unwatched
from jobs.transfers import get_all, put_all


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of a committed set."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a set consists of."""

    files: tuple[FileRow, ...]

    def to_json(self) -> bytes:
        """Return deterministic JSON."""
        return json.dumps({"files": [asdict(row) for row in self.files]}, indent=1).encode()


def below(prefix: str, name: str) -> str:
    """Return the key of a set's file; the prefix of a store that is one set is empty."""
    return f"{prefix}/{name}" if prefix else name


def describe(folder: Path) -> Manifest:
    """Return the manifest of every file below `folder`, in order of path."""
    return Manifest(
        tuple(FileRow(name, path.stat().st_size, sha256_of(path)) for name, path in _files(folder))
    )


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Return (path below the folder, file), in order of path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in paths]


def commit(
    store: Store,
    prefix: str,
    folder: Path,
    check: Callable[[], None] = lambda: None,
    progress: Progress = unwatched,
    sent: dict[str, Stored] | None = None,
) -> Manifest:
    """Upload the files of `folder` as the set `prefix`, verify them and make the set visible.

    A set that is committed with the same files already is left alone.

    Args:
        store: where.
        prefix: the set.
        folder: its files; they must not change meanwhile.
        check: called first and before the set becomes visible; a run's commit checks its claim
            there, since an old attempt must not even hide what a new one has committed.
        progress: takes the bytes that have been moved.
        sent: what an earlier call for the same files has stored, key -> proof; filled here, and
            not sent again.

    Raises:
        OSError: the store failed; the same call again continues.
    """
    sent = {} if sent is None else sent
    check()
    if is_committed(store, prefix):
        with suppress(BadData, FileNotFoundError):
            if (there := read_manifest(store, prefix)) == describe(folder):
                progress(sum(row.bytes for row in there.files))
                return there
        # A set that is written again is invisible until it is whole again.
        store.delete(below(prefix, layout.COMMITTED))
    files = [(name, below(prefix, name), path) for name, path in _files(folder)]
    missing = [(key, path) for _, key, path in files if key not in sent]
    put_all(store, missing, progress, sent)
    manifest = Manifest(
        tuple(FileRow(name, sent[key].size, sent[key].sha256) for name, key, _ in files)
    )
    key = below(prefix, layout.MANIFEST)
    sent[key] = store.write(key, manifest.to_json())
    try:
        compare(store, below(prefix, ""), sent)
    except OSError:
        sent.clear()  # what is missing or another object is written again
        raise
    check()
    digest = hashlib.sha256(manifest.to_json()).hexdigest()
    key = below(prefix, layout.COMMITTED)
    compare(store, key, {key: store.write(key, digest.encode() + b"\n")})
    return manifest


def compare(store: Store, prefix: str, stored: Mapping[str, Stored]) -> None:
    """Compare what was stored with what the store lists: a last look at all, a page a thousand.

    Raises:
        OSError: an object is missing, or another one than was stored.
    """
    there = {entry.key: entry for entry in store.list(prefix)}
    for key, proof in stored.items():
        entry = there.get(key)
        if entry is None:
            raise OSError(f"{store.url}/{key}: is not there after it was written")
        # The tag of an object of parts is no server's promise: rclone lists another one later.
        tagged = entry.tag and proof.tag and "-" not in proof.tag
        if entry.size != proof.size or (tagged and entry.tag != proof.tag):
            raise OSError(f"{store.url}/{key}: is another object than was written")


def verify_set(store: Store, prefix: str, progress: Progress = unwatched) -> Manifest:
    """Read every file of a committed set back and compare.

    Raises:
        FileNotFoundError: the set is not committed.
        BadData: a file is missing or is not the one that was committed; it is named.
    """
    manifest = read_manifest(store, prefix)
    for row in manifest.files:
        key = below(prefix, row.path)
        try:
            found = store.sha256(key)
        except FileNotFoundError as error:
            raise BadData(f"{store.url}/{key}: is gone, and was committed") from error
        if found != row.sha256:
            raise BadData(f"{store.url}/{key}: not the file that was committed")
        progress(row.bytes)
    return manifest


def committed_steps(store: Store, run: str) -> list[int]:
    """Return the steps of the run's committed checkpoints, ascending."""
    suffix = f"/{layout.COMMITTED}"
    steps = (
        layout.step_of(entry.key.removesuffix(suffix))
        for entry in store.list(layout.key(run, layout.CHECKPOINTS, ""))
        if entry.key.endswith(suffix)
    )
    return sorted(step for step in steps if step is not None)


def is_committed(store: Store, prefix: str) -> bool:
    """Say whether the set has its marker."""
    key = below(prefix, layout.COMMITTED)
    return any(entry.key == key for entry in store.list(key))


def read_manifest(store: Store, prefix: str) -> Manifest:
    """Return the manifest of a committed set.

    Raises:
        FileNotFoundError: the set is not committed.
        BadData: the manifest is not the one that was committed.
    """
    marker, manifest = (below(prefix, name) for name in (layout.COMMITTED, layout.MANIFEST))
    digest = store.read(marker).decode("ascii", "replace").strip()
    raw = store.read(manifest)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise BadData(f"{store.url}/{prefix}: its manifest is not the one that was committed")
    try:
        return Manifest(tuple(FileRow(**row) for row in json.loads(raw)["files"]))
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(f"{store.url}/{prefix}: its manifest is damaged") from error


def download(store: Store, prefix: str, folder: Path, progress: Progress = unwatched) -> Manifest:
    """Copy a committed set into `folder`, each file verified; what is there whole stays.

    Raises:
        FileNotFoundError: the set is not committed.
        BadData: a file is not the one that was committed, or its path leads out of the folder.
    """
    manifest = read_manifest(store, prefix)
    for row in manifest.files:
        if any(part in ("", ".", "..") for part in row.path.split("/")):
            raise BadData(f"{store.url}/{prefix}: its manifest names a file outside: {row.path!r}")
    wanted = [row for row in manifest.files if not _whole(folder / row.path, row)]
    items = [(below(prefix, row.path), folder / row.path) for row in wanted]
    for row, found in zip(wanted, get_all(store, items, progress), strict=True):
        if found != row.sha256:
            (folder / row.path).unlink()
            raise BadData(f"{store.url}/{prefix}/{row.path}: not the file that was committed")
    return manifest


def _whole(path: Path, row: FileRow) -> bool:
    return path.is_file() and path.stat().st_size == row.bytes and sha256_of(path) == row.sha256
