"""Owns what a run's records in the store say: progress, results, newest commit.

Reads only; must not know of processes or clusters, since records outlive both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs import layout
from jobs.stores import Store

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
    committed: int | None = None
    """Step of the newest committed checkpoint."""
    attempts: int | None = None


def progress(store: Store, run: str, spec: Mapping[str, Any]) -> Progress:
    """Return how far the run is that was submitted with `spec`."""
    attempts = document(store, layout.key(run, layout.SPEC)).get("attempts")
    if spec.get("kind") == "infer":
        return Progress(
            pictures=len({row["file"] for row in pictures(store, run)}),
            asked=_asked(store, spec),
            attempts=attempts,
        )
    logged = list(rows(store, layout.key(run, layout.METRICS)))
    newest = logged[-1] if logged else {}
    step, steps, pace = newest.get("step"), spec.get("steps"), newest.get("ms_per_step")
    return Progress(
        step=step,
        steps=steps,
        loss=newest.get("loss"),
        images_per_second=newest.get("img_s"),
        seconds_left=(steps - step) * pace / 1000 if step and steps and pace else None,
        committed=newest_step(store, run),
        attempts=attempts,
    )


def newest_step(store: Store, run: str) -> int | None:
    """Return the step of the run's newest committed checkpoint."""
    from jobs.commits import committed_steps

    return max(committed_steps(store, run), default=None)


def result(store: Store, run: str) -> Row:
    """Return result.json, which a run writes at its end; empty before."""
    return document(store, layout.key(run, layout.RESULT))


def pictures(store: Store, run: str) -> list[Row]:
    """Return the manifest rows of the run's committed pictures."""
    return [
        row
        for row in rows(store, layout.key(run, layout.PICTURES))
        if isinstance(row.get("file"), str) and isinstance(row.get("sha256"), str)
    ]


def document(store: Store, key: str) -> Row:
    """Return a JSON record; a missing one is empty."""
    try:
        found = json.loads(store.read(key))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def rows(store: Store, key: str) -> Iterator[Row]:
    """Yield the rows of a JSON-lines record; a missing one has none."""
    try:
        data = store.read(key)
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a record that is being written
        if isinstance(row, dict):
            yield row


def _asked(store: Store, spec: Mapping[str, Any]) -> int | None:
    prompts = spec.get("prompts")
    if isinstance(prompts, dict):  # they wait in the store
        count = sum(1 for _ in rows(store, str(prompts.get("key"))))
    else:
        count = len(prompts or ())
    return count * int(spec.get("images", 1)) or None
