"""Owns what there is of a run to fetch: its records, pictures, logs and committed checkpoints.

Must not move any of it (transfer.py).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs import layout
from jobs.commits import committed_steps, read_manifest
from jobs.errors import BadData
from jobs.stores import Entry, Store
from launcher import records
from launcher.errors import NotFound

RECORDS = (layout.SPEC, layout.METRICS, layout.PICTURES, layout.RESULT, layout.END)


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a run: its path below the run's prefix, and its digest where one is recorded."""

    path: str
    sha256: str | None
    bytes: int = 0
    version: str = ""
    """What changes when the file does."""


def items(
    store: Store, run: str, include: Sequence[str] = (), step: int | None = None
) -> tuple[Item, ...]:
    """Return what there is to fetch: a committed checkpoint, pictures, records; logs if asked for.

    Args:
        store: where the run is.
        run: its name.
        include: patterns such as `images/*`, of which a path has to match one; none means all but
            the logs.
        step: which checkpoint; none means the newest.

    Raises:
        NotFound: the store has no such run, or nothing of it that is committed and matches.
    """
    there = {entry.key: entry for entry in store.list(layout.key(run, ""))}
    if not there:
        raise NotFound(f"run {run!r}: no such run in {store.url}", "--store names another place")
    found = [*_pictures(store, run, there), *_records(run, there), *_logs(run, there)]
    if step is not None or not include or any(_in_checkpoints(pattern) for pattern in include):
        found += _checkpoint(store, run, there, step)
    if not found:
        raise NotFound(
            f"run {run!r}: nothing is committed yet", f"launcher status {run} tells how far it is"
        )
    chosen = [
        item
        for item in found
        if any(fnmatch.fnmatchcase(item.path, pattern) for pattern in include)
        or (not include and not item.path.startswith(f"{layout.LOGS}/"))
    ]
    if not chosen:
        tops = {_top(item.path) for item in found}
        if any(key.startswith(layout.key(run, layout.CHECKPOINTS, "")) for key in there):
            tops.add(f"{layout.CHECKPOINTS}/*")
        raise NotFound(
            f"run {run!r}: nothing matches --include {' '.join(include)}",
            f"there are {', '.join(sorted(tops))}",
        )
    return tuple(chosen)


def _in_checkpoints(pattern: str) -> bool:
    """Say whether a pattern may mean a file of a checkpoint: it is no other part's."""
    own = (layout.IMAGES, layout.LOGS)
    return pattern not in RECORDS and not pattern.startswith(tuple(f"{name}/" for name in own))


def _checkpoint(
    store: Store, run: str, there: Mapping[str, Entry], step: int | None
) -> Iterator[Item]:
    steps = committed_steps(store, run)
    if step is not None and step not in steps:
        raise NotFound(
            f"run {run!r}: step {step} is no committed checkpoint",
            f"there are {', '.join(map(str, steps[-8:]))}" if steps else f"launcher status {run}",
        )
    if not steps:
        return
    chosen = step if step is not None else steps[-1]
    prefix = f"{layout.CHECKPOINTS}/{layout.step_name(chosen)}"
    try:
        manifest = read_manifest(store, layout.key(run, prefix))
    except BadData as error:
        others = ", ".join(str(other) for other in steps[-8:] if other != chosen)
        hint = f"--step fetches another: {others}" if others else "--include leaves it out"
        raise NotFound(str(error), hint) from error
    except FileNotFoundError as error:  # a run that is resumed writes its last set again
        raise NotFound(f"run {run!r}: {prefix} is being written", "try again") from error
    for row in manifest.files:
        yield Item(f"{prefix}/{row.path}", row.sha256, row.bytes, row.sha256)
    for name in (layout.MANIFEST, layout.COMMITTED):
        yield _item(run, f"{prefix}/{name}", None, there)


def _pictures(store: Store, run: str, there: Mapping[str, Entry]) -> Iterator[Item]:
    digests = {row["file"]: row["sha256"] for row in records.pictures(store, run)}
    for path, sha256 in sorted(digests.items()):
        yield _item(run, path, sha256, there)


def _records(run: str, there: Mapping[str, Entry]) -> Iterator[Item]:
    for name in RECORDS:
        if layout.key(run, name) in there:
            yield _item(run, name, None, there)


def _logs(run: str, there: Mapping[str, Entry]) -> Iterator[Item]:
    start = layout.key(run, "")
    for key in there:
        path = key.removeprefix(start)
        if path.startswith(f"{layout.LOGS}/"):
            yield _item(run, path, None, there)


def _item(run: str, path: str, sha256: str | None, there: Mapping[str, Entry]) -> Item:
    entry = there.get(layout.key(run, path))
    if entry is None:
        return Item(path, sha256, 0, sha256 or "")
    version = sha256 or f"{entry.size} {entry.tag} {entry.modified}"
    return Item(path, sha256, entry.size, version)


def _top(path: str) -> str:
    head, slash, _ = path.partition("/")
    return f"{head}/*" if slash else head
