"""Owns looking at and clearing what runs of a store share: compiled graphs, encoded pictures.

A run makes anew what it does not find, so nothing here is needed but for time. Must not touch what
a run does need: prompts, which lie beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs import layout, retention
from jobs.stores import Store
from launcher import output, places, storage
from launcher.settings import Settings

KINDS = ("graphs", "latents")


@dataclass(frozen=True, slots=True)
class Kept:
    """One set of the cache."""

    kind: str
    """One of KINDS."""
    key: str
    """Hash of all that its content goes by."""
    bytes: int
    modified: float
    """When its newest object was written; seconds since the epoch. Reading changes it nowhere."""

    @property
    def prefix(self) -> str:
        """Where it lies in the store."""
        return layout.key(layout.CACHE, self.kind, self.key)


def sets(store: Store) -> Iterator[Kept]:
    """Yield the sets of the cache by kind and key, by one listing of each kind.

    Raises:
        OSError: the store failed.
    """
    for kind in KINDS:
        found: dict[str, Kept] = {}
        for entry in store.list(layout.key(layout.CACHE, kind, "")):
            key = entry.key.split("/")[2]
            old = found.get(key, Kept(kind, key, 0, 0.0))
            newest = max(old.modified, entry.modified)
            found[key] = Kept(kind, key, old.bytes + entry.size, newest)
        yield from (found[key] for key in sorted(found))


def show(settings: Settings, *, as_json: bool) -> None:
    """Print how much of each kind the store holds, and how old it is.

    Raises:
        Forbidden, Unreachable, Misconfigured: the store cannot be asked.
    """
    store, now = _store(settings), time.time()
    with storage.asking(store):
        found = list(sets(store))
    rows = []
    for kind in KINDS:
        own = [row for row in found if row.kind == kind]
        if own:
            ages = sorted(now - row.modified for row in own)
            rows.append((kind, len(own), sum(row.bytes for row in own), ages[-1], ages[0]))
    if as_json:
        names = ("kind", "sets", "bytes", "oldest_s", "newest_s")
        output.as_json([dict(zip(names, row, strict=True)) for row in rows])
    elif rows:
        table = [
            (kind, str(count), output.size(size), *(f"{output.duration(age)} ago" for age in ages))
            for kind, count, size, *ages in rows
        ]
        output.data(output.table(("KIND", "SETS", "SIZE", "OLDEST", "NEWEST"), table))
    else:
        output.say(f"no cache in {store.url}")


def prune(settings: Settings, *, older_than_seconds: float, yes: bool) -> None:
    """Print the sets that were made longer ago, one a line, and remove them if `yes` says so.

    Raises:
        Forbidden, Unreachable, Misconfigured: the store cannot be asked or written.
    """
    store, before = _store(settings), time.time() - older_than_seconds
    with storage.asking(store):
        doomed = [row for row in sets(store) if row.modified < before]
        for row in doomed:
            output.data(f"{row.prefix} ({output.size(row.bytes)})")
            if yes:
                retention.remove(store, row.prefix)
    told = f"{output.counted(len(doomed), 'set')} ({output.size(sum(row.bytes for row in doomed))})"
    if not doomed:
        output.say(f"cache of {store.url}: nothing to remove")
    elif yes:
        output.say(f"cache of {store.url}: removed {told}; who needs one makes it anew")
    else:
        output.say(f"cache of {store.url}: would remove {told}; --yes does")


def _store(settings: Settings) -> Store:
    url = settings.target.store or places.LOCAL_STORE
    return storage.of_target(replace(settings.target, store=url))
