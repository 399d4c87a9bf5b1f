"""Owns the copy of a run's results from the store to a folder, each file verified.

Must not know what the files mean, and never shows half a file: a file appears by rename, after its
digest has been compared.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs import layout
from jobs.commits import committed_steps, read_manifest, sha256_of
from jobs.errors import BadData
from jobs.stores import Store
from launcher import records
from launcher.errors import Misconfigured, NameTaken, NotFound

_ELSEWHERE = "name another folder"
RECORDS = (layout.SPEC, layout.METRICS, layout.PICTURES, layout.RESULT)


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a run: its path below the run's prefix, and its digest where one is recorded."""

    path: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one item."""

    item: Item
    bytes: int
    fresh: bool
    """False: it lay there already with the same digest."""


def items(store: Store, run: str, include: Sequence[str] = ()) -> tuple[Item, ...]:
    """Return what there is to fetch: newest committed checkpoint, pictures, records.

    Args:
        store: where the run is.
        run: its name.
        include: patterns such as `images/*`, of which a path has to match one; none means all.

    Raises:
        NotFound: the store has no such run, or nothing of it that is committed and matches.
    """
    found = [*_checkpoint(store, run), *_pictures(store, run), *_records(store, run)]
    if not found:
        if next(iter(store.list(layout.key(run, ""))), None) is None:
            raise NotFound(
                f"run {run!r}: no such run in {store.url}", "--store names another place"
            )
        raise NotFound(
            f"run {run!r}: nothing is committed yet", f"launcher status {run} tells how far it is"
        )
    chosen = [
        item
        for item in found
        if not include or any(fnmatch.fnmatchcase(item.path, pattern) for pattern in include)
    ]
    if not chosen:
        raise NotFound(
            f"run {run!r}: nothing matches --include {' '.join(include)}",
            f"there are {', '.join(sorted({_top(item.path) for item in found}))}",
        )
    return tuple(chosen)


def fetch(
    store: Store, run: str, folder: Path, wanted: Sequence[Item], *, force: bool = False
) -> Iterator[Copied]:
    """Copy the items into `folder`, one after the other, and yield each.

    All are checked before the first is copied.

    Args:
        store: where the run is.
        run: its name.
        folder: where the items go.
        wanted: the items.
        force: replace files that lie there already.

    Raises:
        NameTaken: another file, or a folder, lies where an item belongs.
        NotFound: a file is gone from the store, or is not the one that was committed.
        Misconfigured: a record of the run names a file outside of it.
    """
    targets = [(item, folder / _safe(item.path)) for item in wanted]
    equal = {item for item, target in targets if _lies_there(store, run, item, target, force=force)}
    for item, target in targets:
        if item not in equal:
            _copy(store, layout.key(run, item.path), target, item.sha256)
        yield Copied(item, target.stat().st_size, item not in equal)


def _lies_there(store: Store, run: str, item: Item, target: Path, *, force: bool) -> bool:
    """Return whether the item needs no copying; refuse what must not be replaced."""
    above = [place for place in target.parents if place.exists() and not place.is_dir()]
    if above:
        raise NameTaken(f"{above[0]}: is a file, not a folder", _ELSEWHERE)
    if target.is_dir():
        raise NameTaken(f"{target}: is a folder, and the run has a file of that name", _ELSEWHERE)
    if not target.exists():
        return False
    key = layout.key(run, item.path)
    try:
        wanted = item.sha256 or store.sha256(key)
    except FileNotFoundError as error:
        raise NotFound(f"{key}: is gone from {store.url}") from error
    if sha256_of(target) == wanted:
        return True
    if not force:
        raise NameTaken(
            f"{target}: exists and is another file", f"--force replaces it, or {_ELSEWHERE}"
        )
    return False


def _copy(store: Store, key: str, target: Path, sha256: str | None) -> None:
    """Copy one object, verified where its digest is known."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as draft:
        part = Path(draft) / target.name
        try:
            store.get(key, part)
        except FileNotFoundError as error:
            raise NotFound(f"{key}: is gone from {store.url}") from error
        if sha256 and sha256_of(part) != sha256:
            raise NotFound(
                f"{key}: is not the file that was committed to {store.url}",
                "--include leaves it out; its bytes were changed or damaged in the store",
            )
        part.replace(target)


def _checkpoint(store: Store, run: str) -> Iterator[Item]:
    steps = committed_steps(store, run)
    if not steps:
        return
    prefix = f"{layout.CHECKPOINTS}/{layout.step_name(steps[-1])}"
    try:
        manifest = read_manifest(store, layout.key(run, prefix))
    except BadData as error:
        raise NotFound(str(error)) from error
    except FileNotFoundError as error:  # a run that is resumed writes its last set again
        raise NotFound(f"run {run!r}: {prefix} is being written", "try again") from error
    for row in manifest.files:
        yield Item(f"{prefix}/{row.path}", row.sha256)
    yield Item(f"{prefix}/{layout.MANIFEST}", None)
    yield Item(f"{prefix}/{layout.COMMITTED}", None)


def _pictures(store: Store, run: str) -> Iterator[Item]:
    digests = {row["file"]: row["sha256"] for row in records.pictures(store, run)}
    for path, sha256 in sorted(digests.items()):
        yield Item(path, sha256)


def _records(store: Store, run: str) -> Iterator[Item]:
    present = {entry.key for entry in store.list(layout.key(run, ""))}
    for name in RECORDS:
        if layout.key(run, name) in present:
            yield Item(name, None)


def _safe(path: str) -> PurePosixPath:
    """Return a path that stays below the folder it is joined to, whatever a record says."""
    # Printable: no zero byte, no line end, nothing that has no UTF-8.
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        raise Misconfigured(f"{path!r}: a record of the run names a file outside of it")
    return PurePosixPath(path)


def _top(path: str) -> str:
    head, slash, _ = path.partition("/")
    return f"{head}/*" if slash else head
