"""Owns the verbs that move data: fetch and push. What they do -> words, progress, exit codes.

Must not move a byte itself (transfer.py, push.py).
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs import layout
from jobs.stores import FileStore, Store
from launcher import contents, output, places, push, records, storage, transfer
from launcher.backends import localrun
from launcher.backends.localrun import Files
from launcher.errors import Forbidden, NotFound, RunFailed, Unreachable, writing
from launcher.jobends import JobEnd
from launcher.meter import GOES_ON, Meter
from launcher.receipts import Receipts
from launcher.settings import Settings

LAST_LOOKS = 2
"""At a run that has its result, for the record of its end; an older version writes none."""
WATCH_SECONDS = 5.0
"""Between two looks at a run that is watched; a look at S3 is one request per thousand objects."""


@dataclass
class _Fetched:
    """What a fetch has done so far."""

    kept: int = 0
    new: dict[str, int] = field(default_factory=dict)
    """Path -> size of what was fetched; a record that grows is one file."""
    versions: dict[str, str] = field(default_factory=dict)
    """Path -> what of it was compared last; it is looked at again when that changes."""


def fetch(
    settings: Settings,
    run: str,
    folder: Path,
    include: Sequence[str],
    *,
    force: bool,
    watch: bool,
    step: int | None = None,
) -> None:
    """Copy a run's results to `folder`; the paths of new files go to stdout.

    Args:
        settings: where to look.
        run: the run's name.
        folder: where the files go; made if need be.
        include: patterns of the paths that are wanted; none means all.
        force: replace other files that lie there.
        watch: go on with what the run commits, until it has ended.
        step: the checkpoint that is wanted; none means the newest.

    Raises:
        LauncherError: as the steps do.
        RunFailed: the run that was watched ended without a result.
    """
    store = places.store_of(settings, run, "fetch")
    told, receipts = _Fetched(), Receipts(folder, run)

    def once() -> None:
        with between(store, folder):
            found = contents.items(store, run, include, step)
            _pass(store, run, folder, found, told, receipts, force=force)

    try:
        if watch:
            files = places.local_files(settings, run, store)
            _watched(store, run, once, told, files or JobEnd(settings.target.context, run))
        else:
            once()
    except KeyboardInterrupt:
        output.say(GOES_ON)
        raise
    there = f"; {told.kept} lay there already" if told.kept else ""
    what = f"{output.counted(len(told.new), 'file')} ({output.size(sum(told.new.values()))})"
    output.say(f"fetched {what}, verified{there}")


def upload(settings: Settings, folder: Path, url: str) -> None:
    """Put a folder into a store as a committed set; its address goes to stdout.

    Raises:
        LauncherError: as the steps do; the same call again goes on.
    """
    files = push.survey(folder)
    where = push.place(url, storage.access(settings.target))
    push.check_apart(where, folder)
    total = sum(path.stat().st_size for path in files.values())
    what = f"{output.counted(len(files), 'file')} ({output.size(total)})"
    try:
        with storage.asking(where.store):
            with Meter("compare", total) as meter:
                there = push.committed(where, files, meter.moved)
            if there:
                output.say(f"{where.url}: has these {what} already; nothing was sent")
            else:
                with Meter("push", total) as meter, _reading(folder):
                    push.send(where, folder, files, meter.moved)
                output.say(f"pushed {what} in {output.duration(max(1, meter.seconds()))}, verified")
    except KeyboardInterrupt:
        output.say(GOES_ON)
        raise
    output.data(where.url)


def _pass(
    store: Store,
    run: str,
    folder: Path,
    found: Sequence[contents.Item],
    told: _Fetched,
    receipts: Receipts,
    *,
    force: bool,
) -> None:
    """Fetch what there is and has changed since the last pass."""
    fresh = [item for item in found if told.versions.get(item.path) != item.version]
    plan = transfer.compare(store, run, folder, fresh, force=force, ours=receipts.files)
    told.kept += 0 if told.versions else plan.kept
    lock = threading.Lock()
    with Meter("fetch", plan.bytes) as meter:

        def done(copied: transfer.Copied) -> None:
            with lock:
                told.new[copied.item.path] = copied.item.bytes
                if copied.item.sha256 is None:  # what is committed does not change
                    receipts.files[copied.item.path] = copied.sha256
                    receipts.save()
            meter.data(str(copied.target))

        transfer.fetch(store, run, folder, plan.missing, progress=meter.moved, done=done)
    told.versions |= {item.path: item.version for item in fresh}


def _watched(
    store: Store, run: str, once: Callable[[], None], told: _Fetched, whose: Files | JobEnd
) -> None:
    """Repeat `once` until the run has ended; a store that is away meanwhile comes back."""
    away, why, waits, lasts = "", "", 0, LAST_LOOKS
    while True:
        try:
            # Asked before the pass: what the run left until its end is fetched by it.
            with storage.asking(store):
                if isinstance(whose, JobEnd):
                    why = whose.reason(records.claim(store, run))
                key = layout.key(run, layout.RESULT)
                result = any(entry.key == key for entry in store.list(key))
                end = records.end(store, run)
            alive = not why if isinstance(whose, JobEnd) else localrun.alive(whose)
            over = result or not alive or bool(end.get("final"))
            if result and not end and lasts:  # the record of its end is written just after
                lasts, over = lasts - 1, False
            if end and not over and end["attempt"] != waits:
                waits = end["attempt"]
                output.say(f"{run}: attempt {waits} ended: {end['reason']}; waiting for the next")
            try:
                once()
            except NotFound as error:
                # Nothing yet, or retention was quicker than we were.
                if over or "no such run" in error.text:
                    raise
            away = ""
        except Unreachable as error:
            # A number of the system's own: it is this machine's disk that is full.
            if not told.versions or getattr(error.__cause__, "errno", None):
                raise
            if error.text != away:
                output.say(f"{error.text}; trying again")
            away, over = error.text, False
        if over:
            break
        time.sleep(WATCH_SECONDS)
    if not result:
        why = why or end.get("reason", "")
        told_why = f": {why}" if why else ""
        raise RunFailed(f"run {run!r}: ended without a result{told_why}", f"launcher status {run}")


@contextmanager
def between(store: Store, folder: Path) -> Iterator[None]:
    """Translate what fails on the way from a store to a folder, and name the one that did."""
    hint = "the same command goes on; or name another folder"
    if not isinstance(store, FileStore):
        with writing(f"folder {folder}", hint), storage.asking(store):
            yield
        return
    with writing(f"folder {folder}", hint):
        try:
            yield
        except PermissionError as error:
            if error.filename and Path(error.filename).is_relative_to(store.root):
                raise Forbidden(
                    f"store {store.root}: cannot be read: {error.filename}: {error.strerror}"
                ) from error
            raise


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Translate what the file system says of a file that is pushed."""
    try:
        yield
    except OSError as error:
        # A copy names its source even where it was the target's disk that was full.
        theirs = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if theirs or not error.filename or not Path(error.filename).is_relative_to(folder):
            raise
        raise NotFound(
            f"{error.filename}: cannot be read: {error.strerror}", "it changed meanwhile; try again"
        ) from error
