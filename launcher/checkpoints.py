"""Owns the verbs on a run's checkpoints: list, verify, pin, prune. Sets of the store -> words.

What may go is decided by jobs.retention, what is whole by jobs.commits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from jobs import layout, retention
from jobs.commits import verify_set
from jobs.errors import BadData
from jobs.stores import Entry, Refused, Store
from launcher import output, places, storage
from launcher.errors import NotFound, Usage
from launcher.meter import Meter
from launcher.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One committed set of a run."""

    step: int
    files: int
    bytes: int
    committed: str
    """Time of its commit, ISO 8601, UTC."""
    pinned: bool
    newest: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """What `prune` would remove."""

    checkpoints: tuple[Checkpoint, ...]
    incomplete: tuple[str, ...]
    """Prefixes of sets that were never committed, and that nobody has touched for a while."""
    uploads: tuple[Entry, ...]
    """Multipart uploads that were begun and not ended."""


def show(settings: Settings, run: str, *, as_json: bool) -> None:
    """Print a run's committed checkpoints, oldest first."""
    store = places.store_of(settings, run, "ckpt")
    with storage.asking(store):
        found = _committed(store, run)
    if as_json:
        output.as_json([asdict(row) for row in found])
    elif found:
        output.data(_table(found, time.time()))
    else:
        output.say(f"{run}: has no committed checkpoint yet")


def verify(settings: Settings, run: str, step: int | None) -> None:
    """Read committed checkpoints back, each file compared; a line for each that is whole.

    Args:
        settings: where to look.
        run: whose.
        step: only this one; none means all.

    Raises:
        NotFound: there is no such checkpoint, or a file is not the one that was committed.
    """
    store = places.store_of(settings, run, "ckpt")
    bad: list[int] = []
    with storage.asking(store):
        chosen = [_one(store, run, step)] if step is not None else _committed(store, run)
        if not chosen:
            raise NotFound(
                f"run {run!r}: has no committed checkpoint yet", f"launcher status {run}"
            )
        with Meter("verify", sum(row.bytes for row in chosen)) as meter:
            for row in chosen:
                try:
                    found = verify_set(store, retention.checkpoint(run, row.step), meter.moved)
                    size = output.size(sum(file.bytes for file in found.files))
                    files = output.counted(len(found.files), "file")
                    meter.data(f"step {row.step}: {files}, {size}, verified")
                except BadData as error:
                    bad.append(row.step)
                    output.say(f"step {row.step}: {error}")
                except FileNotFoundError as error:
                    raise NotFound(f"{run}: step {row.step} was removed meanwhile") from error
    if bad:
        whole = [str(row.step) for row in chosen if row.step not in bad]
        hint = f"whole: step {', '.join(whole)}" if whole else "none that was read is whole"
        steps = ", ".join(map(str, bad))
        raise NotFound(f"run {run!r}: step {steps}: not what was committed", hint)


def pin(settings: Settings, run: str, step: int, *, on: bool) -> None:
    """Keep a committed step from retention, or leave it to it again.

    Raises:
        NotFound: there is no such committed step.
    """
    store = places.store_of(settings, run, "ckpt")
    with storage.asking(store):
        _one(store, run, step)
        retention.pin(store, run, step, on=on)
    output.say(f"{run}: step {step} " + ("stays, whatever retention says" if on else "may go"))


def prune(
    settings: Settings,
    run: str,
    *,
    keep_last: int,
    keep_every: int,
    older_than_hours: float,
    yes: bool,
) -> None:
    """Print what retention removes of a run, one path a line, and remove it if `yes` says so.

    Args:
        settings: where to look.
        run: whose.
        keep_last: how many of the newest checkpoints stay; 0 keeps all.
        keep_every: multiples of this step stay as well; 0 none for that reason.
        older_than_hours: how long an incomplete set or upload must have rested.
        yes: remove it.

    Raises:
        Usage: keep_every without keep_last, which would remove nothing.
        NotFound: there is no such run.
    """
    if keep_every and not keep_last:
        raise Usage("--keep-every: means nothing without --keep-last", "--keep-last 1")
    store = places.store_of(settings, run, "ckpt")
    before = time.time() - older_than_hours * 3600
    with storage.asking(store):
        doomed = _doomed(store, run, keep_last, keep_every, before)
        rows = _rows(run, doomed)
        young = len(retention.incomplete(store, run, time.time())) - len(doomed.incomplete)
        for row in rows:
            output.data(row)
        if yes:
            for checkpoint in doomed.checkpoints:
                retention.remove(store, retention.checkpoint(run, checkpoint.step))
            for prefix in doomed.incomplete:
                retention.remove(store, prefix)
            if doomed.uploads:
                store.abort(layout.key(run, ""), before)
    size = output.size(sum(row.bytes for row in doomed.checkpoints))
    if young > 0 and not yes:
        sets = output.counted(young, "set")
        output.say(f"{run}: {sets} that nobody committed rested for less; see --older-than")
    if not rows:
        output.say(f"{run}: nothing to remove")
    elif yes:
        output.say(f"{run}: removed {len(rows)} ({size} of checkpoints)")
    else:
        output.say(f"{run}: would remove {len(rows)} ({size} of checkpoints); --yes does")


def _doomed(store: Store, run: str, keep_last: int, keep_every: int, before: float) -> Doomed:
    found = {row.step: row for row in _committed(store, run)}
    pinned = [row.step for row in found.values() if row.pinned]
    steps = retention.doomed(list(found), keep_last=keep_last, keep_every=keep_every, pinned=pinned)
    try:
        uploads = store.unfinished(layout.key(run, ""))
    except Refused as error:  # not everybody may list them, and the rest is worth doing
        output.say(f"interrupted uploads: not looked for: {error}")
        uploads = ()
    return Doomed(
        checkpoints=tuple(found[step] for step in steps),
        incomplete=tuple(retention.incomplete(store, run, before)),
        uploads=tuple(entry for entry in uploads if entry.modified < before),
    )


def _rows(run: str, doomed: Doomed) -> list[str]:
    return [
        *(
            f"{retention.checkpoint(run, row.step)} ({output.size(row.bytes)})"
            for row in doomed.checkpoints
        ),
        *(f"{prefix} (never committed)" for prefix in doomed.incomplete),
        *(f"{entry.key} (upload that was not ended)" for entry in doomed.uploads),
    ]


def _committed(store: Store, run: str) -> list[Checkpoint]:
    """Return the run's committed checkpoints, oldest first, by one listing.

    Raises:
        NotFound: the store has no such run.
    """
    sets: dict[int, dict[str, Entry]] = {}
    for entry in store.list(_prefix(run)):
        name, _, rest = entry.key.removeprefix(_prefix(run)).partition("/")
        step = layout.step_of(name)
        if step is not None and rest:
            sets.setdefault(step, {})[rest] = entry
    if not sets and next(iter(store.list(layout.key(run, ""))), None) is None:
        raise NotFound(f"run {run!r}: no such run in {store.url}", "--store names another place")
    whole = sorted(step for step, files in sets.items() if layout.COMMITTED in files)
    return [_checkpoint(step, sets[step], newest=step == whole[-1]) for step in whole]


def _checkpoint(step: int, files: dict[str, Entry], *, newest: bool) -> Checkpoint:
    own = (layout.MANIFEST, layout.COMMITTED, layout.PINNED)
    rows = [entry for name, entry in files.items() if name not in own]
    when = datetime.fromtimestamp(files[layout.COMMITTED].modified, UTC)
    return Checkpoint(
        step=step,
        files=len(rows),
        bytes=sum(entry.size for entry in rows),
        committed=when.isoformat(timespec="seconds"),
        pinned=layout.PINNED in files,
        newest=newest,
    )


def _one(store: Store, run: str, step: int) -> Checkpoint:
    found = _committed(store, run)
    for row in found:
        if row.step == step:
            return row
    steps = ", ".join(str(row.step) for row in found[-8:])
    raise NotFound(
        f"run {run!r}: step {step} is no committed checkpoint",
        f"there are {steps}" if steps else f"launcher status {run}",
    )


def _table(found: Iterable[Checkpoint], now: float) -> str:
    rows = [
        (
            str(row.step),
            output.size(row.bytes),
            f"{output.duration(now - datetime.fromisoformat(row.committed).timestamp())} ago",
            ", ".join(name for name in ("pinned", "newest") if getattr(row, name)),
        )
        for row in found
    ]
    return output.table(("STEP", "SIZE", "COMMITTED", ""), rows)


def _prefix(run: str) -> str:
    return layout.key(run, layout.CHECKPOINTS, "")
