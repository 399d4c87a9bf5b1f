"""Owns the commit protocol: manifest, verification, the marker written last, the run's claim.

Must not know what the files mean. Order of a commit: files, `MANIFEST.json`, verification by
reading back, the claim checked, `COMMITTED`. Readers trust only sets that have `COMMITTED`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs import layout
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.stores import Conflict, Store


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


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose run it is: one submission (`uid`) and its attempt (`epoch`, from 1)."""

    cluster: str
    namespace: str
    uid: str
    epoch: int

    def to_json(self) -> bytes:
        """Return deterministic JSON."""
        return json.dumps(asdict(self)).encode()


def sha256_of(path: Path) -> str:
    """Return the digest of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path) -> Manifest:
    """Return the manifest of every file below `folder`, in order of path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return Manifest(
        tuple(
            FileRow(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path))
            for path in paths
        )
    )


def take_claim(store: Store, run: str, *, cluster: str, namespace: str, uid: str) -> Claim:
    """Make the run this submission's, as its next attempt, and return the claim.

    Raises:
        BadSpec: another submission writes to the prefix, or was quicker.
    """
    key = layout.key(run, layout.CLAIM)
    try:
        old = store.read(key)
    except FileNotFoundError:
        old = None
    epoch = 1
    if old is not None:
        try:
            before = Claim(**json.loads(old))
        except (ValueError, TypeError) as error:
            raise BadSpec(
                f"run {run!r}: its {layout.CLAIM} is damaged; choose another name"
            ) from error
        if before.uid != uid:
            raise BadSpec(
                f"run {run!r}: its records belong to another submission ({before.uid} in "
                f"{before.cluster or 'a cluster'}); choose another name"
            )
        epoch = before.epoch + 1
    claim = Claim(cluster, namespace, uid, epoch)
    try:
        store.swap(key, old, claim.to_json())
    except Conflict as error:
        raise Unavailable(f"run {run!r}: another attempt started at the same moment") from error
    return claim


def check_claim(store: Store, run: str, claim: Claim) -> None:
    """Make sure that the run is still this attempt's.

    Raises:
        Unavailable: a newer attempt has taken it over; not final, for that one may be fine.
    """
    try:
        now = store.read(layout.key(run, layout.CLAIM))
    except FileNotFoundError:
        now = b""
    if now != claim.to_json():
        raise Unavailable(
            f"run {run!r}: taken over by another attempt; this one must not write any more"
        )


def commit(
    store: Store, prefix: str, folder: Path, check: Callable[[], None] = lambda: None
) -> Manifest:
    """Upload the files of `folder` as the set `prefix`, verify them and make the set visible.

    Args:
        check: called first and before the set becomes visible; a run's commit checks its claim
            there, since an old attempt must not even hide what a new one has committed.

    Raises:
        OSError: the store failed; the same call again continues.
    """
    check()
    manifest = describe(folder)
    # A set that is written again is invisible until it is whole again.
    store.delete(f"{prefix}/{layout.COMMITTED}")
    for row in manifest.files:
        store.put(f"{prefix}/{row.path}", folder / row.path)
    store.write(f"{prefix}/{layout.MANIFEST}", manifest.to_json())
    for row in manifest.files:
        verify(store, f"{prefix}/{row.path}", row.sha256)
    check()
    digest = hashlib.sha256(manifest.to_json()).hexdigest()
    store.write(f"{prefix}/{layout.COMMITTED}", digest.encode() + b"\n")
    return manifest


def verify(store: Store, key: str, sha256: str) -> None:
    """Read an object back and compare.

    Raises:
        OSError: the store gives back other bytes than were written.
    """
    if store.sha256(key) != sha256:
        raise OSError(f"{key}: the store gives back other bytes than were written")


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
    key = f"{prefix}/{layout.COMMITTED}"
    return any(entry.key == key for entry in store.list(key))


def read_manifest(store: Store, prefix: str) -> Manifest:
    """Return the manifest of a committed set.

    Raises:
        FileNotFoundError: the set is not committed.
        BadData: the manifest is not the one that was committed.
    """
    digest = store.read(f"{prefix}/{layout.COMMITTED}").decode("ascii", "replace").strip()
    raw = store.read(f"{prefix}/{layout.MANIFEST}")
    if hashlib.sha256(raw).hexdigest() != digest:
        raise BadData(f"{store.url}/{prefix}: its manifest is not the one that was committed")
    return Manifest(tuple(FileRow(**row) for row in json.loads(raw)["files"]))


def download(store: Store, prefix: str, folder: Path) -> Manifest:
    """Copy a committed set into `folder`, each file verified.

    Raises:
        FileNotFoundError: the set is not committed.
        BadData: a file is not the one that was committed.
    """
    manifest = read_manifest(store, prefix)
    for row in manifest.files:
        target = folder / row.path
        store.get(f"{prefix}/{row.path}", target)
        if sha256_of(target) != row.sha256:
            target.unlink()
            raise BadData(f"{store.url}/{prefix}/{row.path}: not the file that was committed")
    return manifest
