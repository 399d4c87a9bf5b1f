"""Owns the log and the end of a run whose Job is gone: what the store alone still tells.

Must not ask a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.stores import Store
from launcher import loglines, output, records, storage
from launcher.errors import LauncherError, RunFailed
from launcher.loglines import Choice, Line
from launcher.storedlogs import Copies


def show(
    store: Store | None, run: str, choice: Choice, *, follow: bool, why: LauncherError
) -> None:
    """Print what the store has of a run's log; to be followed, end as the run did.

    Args:
        store: where to look; None: nowhere.
        run: its name.
        choice: which lines.
        follow: whether the exit code shall tell how the run ended.
        why: why the cluster is not asked; raised where the store has nothing either.

    Raises:
        RunFailed: it was to be followed, and did not succeed.
    """
    copies = Copies(store, run, output.say)
    found = copies.found()
    nodes = {copied.node for copied in found}
    prefix = b"node-%d | " if len(nodes) > 1 and choice.rank is None else b""
    rows: list[tuple[int, bytes, Line]] = []
    for copied in found:
        before = prefix % copied.node if prefix else b""
        rows += [(line.when, before, line) for line in choice.of(copies.lines(copied))]
    if not found:
        workers = copies.workers()
        if not workers:
            raise why
        rows = [(line.when, b"", line) for line in choice.of(workers)]
    if prefix:
        rows.sort(key=lambda row: row[0])
    if choice.tail is not None:
        rows = rows[max(0, len(rows) - choice.tail) :]
    output.say(f"{why.text}; this is what the store has")
    output.raw(b"".join(loglines.printed([line], before) for _, before, line in rows))
    if follow:
        end(store, run)


def end(store: Store | None, run: str) -> None:
    """Tell how a run ended, as its records do.

    Raises:
        RunFailed: it did not succeed, or nobody knows.
    """
    row: Mapping[str, Any] = {}
    if store is not None:
        try:
            with storage.asking(store):
                row = records.end(store, run)
                if not row and records.succeeded(store, run):
                    row = {"code": 0}
        except LauncherError as error:
            output.say(f"{run}: how it ended cannot be read: {error.text}")
    if row.get("code") == 0:
        output.say(f"{run}: succeeded")
        return
    reason = f"{row['name']}: {row['reason']}" if row else "its Job was deleted before it succeeded"
    raise RunFailed(f"run {run!r}: {reason}")
