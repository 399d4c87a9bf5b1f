"""Owns what a run's records in the store say: progress, results, newest commit.

Reads only; must not know of processes or clusters, since records outlive both. What an object store
answers instead of a record passes as it is (see storage.asking).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs import layout
from jobs.errors import BY_CODE
from jobs.prompts import selection
from jobs.stores import FileStore, Store
from launcher import output
from launcher.errors import Misconfigured

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, as far as its records tell; None is not told."""

    step: int | None = None
    """Newest logged training step."""
    steps: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    """At the pace of the newest logged step; compilation and validation come on top."""
    pictures: int | None = None
    """Pictures in the store."""
    asked: int | None = None
    failed: tuple[int, ...] = ()
    """Lines of the pictures that could not be made, one for each of them."""
    seconds_per_step: dict[str, float] = field(default_factory=dict)
    """Of a batch, by scheduler."""
    seconds_by_part: dict[str, float] = field(default_factory=dict)
    """Where the time of a run of pictures went: start, compile, painting, and parts of that."""
    committed: int | None = None
    """Step of the newest committed checkpoint."""
    attempts: int | None = None
    began: str | None = None
    """When the first step of the newest attempt was logged, ISO 8601, UTC: it had compiled then.
    Rows that do not name their attempt count as the first's."""
    newest: str | None = None
    """When the newest step was logged."""
    success: bool | None = None
    """Whether the run has recorded that it succeeded, which it does last of all."""


def progress(store: Store, run: str, spec: Mapping[str, Any]) -> Progress:
    """Return how far the run is that was submitted with `spec`, as the backend recorded it.

    Raises:
        Misconfigured: a record is damaged; it is named.
    """
    record = layout.key(run, layout.SPEC)
    attempts = _count(store, record, document(store, record), "attempts")
    if spec.get("kind") == "infer":
        ended = _leniently(store, layout.key(run, layout.RESULT))
        rate = ended.get("img_s")
        return Progress(
            pictures=len({row["file"] for row in pictures(store, run)}),
            asked=_asked(store, spec),
            failed=_failed(ended),
            images_per_second=rate if isinstance(rate, float) else None,
            seconds_per_step=_seconds(ended, "s_per_step"),
            seconds_by_part=_seconds(ended, "split_s"),
            attempts=attempts,
            success=succeeded(store, run),
        )
    metrics = layout.key(run, layout.METRICS)
    first: Row = {}
    newest: Row = {}
    for row in rows(store, metrics):
        if not first or row.get("attempt") != first.get("attempt"):
            first = row
        newest = row
    step, steps = _count(store, metrics, newest, "step"), spec.get("steps")
    pace = _number(store, metrics, newest, "ms_per_step")
    return Progress(
        step=step,
        steps=steps,
        loss=_number(store, metrics, newest, "loss"),
        images_per_second=_number(store, metrics, newest, "img_s"),
        seconds_left=_seconds_left(step, steps, pace),
        committed=newest_step(store, run),
        attempts=attempts,
        began=_time(first),
        newest=_time(newest),
        success=succeeded(store, run),
    )


def newest_step(store: Store, run: str) -> int | None:
    """Return the step of the run's newest committed checkpoint."""
    from jobs.commits import committed_steps

    return max(committed_steps(store, run), default=None)


def result(store: Store, run: str) -> Row:
    """Return result.json, which a run writes at its end; empty before."""
    return document(store, layout.key(run, layout.RESULT))


def claim(store: Store, run: str) -> Row:
    """Return claim.json, which names the submission that writes the run; empty before."""
    return _leniently(store, layout.key(run, layout.CLAIM))


def end(store: Store, run: str) -> Row:
    """Return end.json of the newest attempt; empty while it goes on, and if it left none.

    Its `code` is the attempt's exit code, `name` and `reason` are that in words, and `final` says
    that no further attempt comes by itself.
    """
    row = _leniently(store, layout.key(run, layout.END))
    epoch = claim(store, run).get("epoch")
    if type(epoch) is not int or row.get("attempt") != epoch or type(row.get("code")) is not int:
        return {}
    known = BY_CODE.get(row["code"])
    if known is None:
        return {}
    row["reason"] = output.printable(str(row.get("reason", known.name)))
    # A cluster, which has namespaces, starts the others again; here a person does.
    row["final"] = known.retry in ("done", "final") or not row.get("namespace")
    return row


def succeeded(store: Store, run: str) -> bool:
    """Return whether the records say that the run succeeded."""
    if found := end(store, run):
        return bool(found["code"] == 0)
    # A version that wrote no end.json told its success by its result alone.
    row = result(store, run)
    return bool(row) and not row.get("failed")


def _leniently(store: Store, key: str) -> Row:
    """Return a record; one that is damaged tells nothing, and hides nothing else."""
    try:
        return document(store, key)
    except Misconfigured:
        return {}


def pictures(store: Store, run: str) -> list[Row]:
    """Return the manifest rows of the run's committed pictures."""
    return [
        row
        for row in rows(store, layout.key(run, layout.PICTURES))
        if isinstance(row.get("file"), str) and isinstance(row.get("sha256"), str)
    ]


def document(store: Store, key: str) -> Row:
    """Return a JSON record; a missing one is empty.

    Raises:
        Misconfigured: it cannot be read, or is no JSON object.
    """
    data = _read(store, key)
    if data is None:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(store, key, "is not JSON") from error
    if not isinstance(found, dict):
        raise _damaged(store, key, "is not a JSON object")
    return found


def rows(store: Store, key: str) -> Iterator[Row]:
    """Yield the rows of a JSON-lines record; a missing one has none.

    Raises:
        Misconfigured: it cannot be read.
    """
    for line in (_read(store, key) or b"").split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a record that is being written
        if isinstance(row, dict):
            yield row


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not isinstance(store, FileStore):
            raise  # the store is away or refuses, which says nothing of the record
        raise _damaged(store, key, f"cannot be read: {error.strerror or error}") from error


def _count(store: Store, key: str, row: Row, name: str) -> int | None:
    found = row.get(name)
    if found is not None and type(found) is not int:
        raise _damaged(store, key, f"its {name} is {found!r:.40}, no whole number")
    return found


def _number(store: Store, key: str, row: Row, name: str) -> float | None:
    found = row.get(name)
    if found is not None and type(found) not in (int, float):
        raise _damaged(store, key, f"its {name} is {found!r:.40}, no number")
    return found


def _damaged(store: Store, key: str, what: str) -> Misconfigured:
    place = store.root / key if isinstance(store, FileStore) else f"{store.url}/{key}"
    return Misconfigured(f"{place}: {what}", "the record is damaged; the other runs are not")


def _time(row: Row) -> str | None:
    found = row.get("time")
    return found if isinstance(found, str) else None


def _seconds_left(step: int | None, steps: int | None, pace: float | None) -> float | None:
    if not step or not steps or not pace or not math.isfinite(pace):
        return None
    return (steps - step) * pace / 1000


def _failed(result: Row) -> tuple[int, ...]:
    """Return the line of each picture that could not be made."""
    found = result.get("failures")
    rows_of = found if isinstance(found, list) else []
    lines = [row.get("line") for row in rows_of if isinstance(row, dict)]
    return tuple(line for line in lines if type(line) is int)


def _seconds(result: Row, key: str) -> dict[str, float]:
    found = result.get(key)
    rows = found.items() if isinstance(found, dict) else ()
    return {str(name): pace for name, pace in rows if isinstance(pace, float)}


def _asked(store: Store, spec: Mapping[str, Any]) -> int | None:
    """Return how many pictures the spec asks for, over the rows that it holds or names."""
    prompts = spec.get("prompts")
    # A dictionary names where they wait in the store.
    found = rows(store, str(prompts.get("key"))) if isinstance(prompts, dict) else prompts or ()
    wanted = selection(spec.get("only"))
    every = int(spec.get("images", 1))
    counted = ((row.get("line", 0), int(row.get("images") or every)) for row in found)
    return sum(wanted.count(line, images) for line, images in counted) or None
