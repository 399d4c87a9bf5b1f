"""Owns the copy of a run's results from the store to a folder: several at once, each verified.

Must not know what the files mean, and never shows half a file: what arrives is kept in a hidden
folder, and appears by rename after its digest has been compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from jobs import layout
from jobs.stores import PART, Progress, Store, sha256_of, unwatched
from jobs.transfers import FILES_AT_ONCE, get_all
from launcher.contents import Item
from launcher.errors import Misconfigured, NameTaken, NotFound

_ELSEWHERE = "name another folder"


@dataclass(frozen=True, slots=True)
class Copied:
    """A file that was fetched."""

    item: Item
    target: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What of a run has to be fetched."""

    missing: tuple[Item, ...]
    kept: int
    """Files that lay there already, whole."""

    @property
    def bytes(self) -> int:
        """Size of what has to be fetched."""
        return sum(item.bytes for item in self.missing)


def compare(
    store: Store,
    run: str,
    folder: Path,
    wanted: Sequence[Item],
    *,
    force: bool = False,
    ours: Mapping[str, str] | None = None,
) -> Plan:
    """Return which of the items have to be fetched; nothing is written.

    Args:
        store: where the run is.
        run: its name.
        folder: where the items go.
        wanted: the items.
        force: replace other files that lie there.
        ours: path -> SHA-256 of what earlier calls have fetched: growing records may be replaced.

    Raises:
        NameTaken: another file, or a folder, lies where an item belongs.
        NotFound: a file is gone from the store.
        Misconfigured: a record of the run names a file outside of it.
    """
    targets = [(item, folder / _safe(item.path)) for item in wanted]

    def whole(pair: tuple[Item, Path]) -> bool:
        item, target = pair
        if not _occupied(target):
            return False
        recorded = item.path.startswith(f"{layout.CHECKPOINTS}/") and item.sha256 is not None
        if recorded and target.stat().st_size != item.bytes:
            found = ""  # 30 GB need not be read to know that it is another file
        else:
            found = sha256_of(target)
        if found == _wanted_digest(store, run, item):
            return True
        if force or (ours or {}).get(item.path) == found:
            return False
        raise NameTaken(
            f"{target}: exists and is another file", f"--force replaces it, or {_ELSEWHERE}"
        )

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        equal = list(pool.map(whole, targets))
    missing = tuple(item for item, same in zip(wanted, equal, strict=True) if not same)
    return Plan(missing, len(wanted) - len(missing))


def fetch(
    store: Store,
    run: str,
    folder: Path,
    missing: Sequence[Item],
    *,
    progress: Progress = unwatched,
    done: Callable[[Copied], None],
) -> None:
    """Copy the items into `folder`; an interrupted call is gone on with by the next.

    Args:
        store: where the run is.
        run: its name.
        folder: where the items go.
        missing: the items, as `compare` leaves them.
        progress: takes the bytes that have been moved.
        done: called for each file when it is there, from any thread.

    Raises:
        NotFound: a file is gone from the store, or is not the one that was committed.
        OSError: the store, or the folder, failed.
    """
    drafts = folder / f"{PART}{run}"
    relay = _Checked(store, run, {folder / _safe(item.path): item for item in missing}, drafts)
    relay.done = done
    wanted = [(layout.key(run, item.path), target) for target, item in relay.items.items()]
    # Markers come last: half a checkpoint must not look like a whole one.
    markers = (layout.MANIFEST, layout.COMMITTED)
    groups = [[pair for pair in wanted if pair[1].name not in markers]]
    groups += [[pair for pair in wanted if pair[1].name == name] for name in markers]
    try:
        for group in groups:
            get_all(cast("Store", relay), group, progress)
    finally:
        _remove_empty(drafts)  # what others have begun in it stays theirs


class _Checked:
    """A store of which `get` compares digests before a file appears; nothing else is asked of it.

    Instead of a loop around it, so that each file appears as soon as it is whole.
    """

    def __init__(self, store: Store, run: str, items: dict[Path, Item], drafts: Path) -> None:
        self._store, self._run, self._drafts = store, run, drafts
        self.items = items
        self.done: Callable[[Copied], None] = lambda _: None

    def get(self, key: str, path: Path, progress: Progress) -> str:
        item = self.items[path]
        draft = self._drafts / item.path
        draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self._store.get(key, draft, progress)
            if item.sha256 not in (None, found):  # the draft was, or the way: once more
                draft.unlink()
                found = self._store.get(key, draft, unwatched)
        except FileNotFoundError as error:
            if error.filename:  # of this machine
                raise
            raise NotFound(f"{key}: is gone from {self._store.url}") from error
        if item.sha256 is not None and found != item.sha256:
            draft.unlink()
            raise NotFound(
                f"{key}: is not the file that was committed to {self._store.url}",
                "its bytes were changed or damaged in the store; --step names another checkpoint, "
                "--include leaves it out",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(path)
        self.done(Copied(item, path, found))
        return found


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those below it, but for files and what is above them."""
    for place in sorted(folder.rglob("*"), reverse=True):
        with suppress(OSError):
            place.rmdir()
    with suppress(OSError):
        folder.rmdir()


def _occupied(target: Path) -> bool:
    """Return whether a file lies in an item's place; refuse what can never be replaced."""
    above = [place for place in target.parents if place.exists() and not place.is_dir()]
    if above:
        raise NameTaken(f"{above[0]}: is a file, not a folder", _ELSEWHERE)
    if target.is_dir():
        raise NameTaken(f"{target}: is a folder, and the run has a file of that name", _ELSEWHERE)
    return target.exists()


def _wanted_digest(store: Store, run: str, item: Item) -> str:
    key = layout.key(run, item.path)
    try:
        return item.sha256 or store.sha256(key)
    except FileNotFoundError as error:
        raise NotFound(f"{key}: is gone from {store.url}") from error


def _safe(path: str) -> PurePosixPath:
    """Return a path that stays below the folder it is joined to, whatever a record says."""
    # Printable: no zero byte, no line end, nothing that has no UTF-8.
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        raise Misconfigured(f"{path!r}: a record of the run names a file outside of it")
    return PurePosixPath(path)
