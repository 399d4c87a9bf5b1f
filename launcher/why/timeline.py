"""Owns where the time of a run's newest attempt went: queued, pulling, ..., uploading. Pure.

Must not judge. The cluster's clocks and the pods' may differ by seconds; nothing is negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from launcher import fields, output
from launcher.records import Progress
from launcher.snapshot import Snapshot
from launcher.why import attempts
from launcher.why.attempts import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of time of one attempt."""

    name: str
    began: str
    """ISO 8601, UTC."""
    seconds: float
    now: bool = False
    """Whether it goes on."""


def timeline(snapshot: Snapshot, progress: Progress | None = None) -> tuple[Phase, ...]:
    """Return the phases of the newest attempt, in order; of several pods the one placed last.

    Args:
        snapshot: what the cluster says.
        progress: what the run's records say, if they were read.
    """
    found = attempts.newest(snapshot.pods)
    if not found:
        return _phases([("queued", _created(snapshot))], None, snapshot.now)
    row = max(found, key=lambda row: (row.started, _placed(row) or snapshot.now))
    marks: list[tuple[str, datetime | None]] = [("queued", _queued(snapshot, row))]
    placed, running = _placed(row), _running(row)
    pulled = _pull(snapshot, row)
    if placed:
        if pulled:
            marks += [("starting", placed)] if pulled[0] > placed else []
            marks += [("pulling", pulled[0]), ("starting", pulled[1])]
        else:
            marks.append(("starting", placed))
    if running:
        marks += _work(running, progress)
    return _phases(marks, row.ending.finished if row.ending else None, snapshot.now)


def told(phases: tuple[Phase, ...]) -> str:
    """Return the phases for people: queued 3s, pulling 2m 10s, training 1h 05m so far."""
    return ", ".join(
        f"{row.name} {output.duration(row.seconds)}{' so far' if row.now else ''}" for row in phases
    )


def _phases(
    marks: list[tuple[str, datetime | None]], end: datetime | None, now: datetime
) -> tuple[Phase, ...]:
    """Return what lies between the marks; two stretches of one name are added up."""
    known = [(name, moment) for name, moment in marks if moment is not None]
    made: dict[str, Phase] = {}
    last = known[0][1] if known else now
    for place, (name, moment) in enumerate(known):
        begin = max(moment, last)  # clocks differ
        following = known[place + 1][1] if place + 1 < len(known) else end or now
        last = max(begin, following)
        goes_on = place + 1 == len(known) and end is None
        before = made[name].seconds if name in made else 0.0
        since = made[name].began if name in made else begin.isoformat().replace("+00:00", "Z")
        seconds = before + (last - begin).total_seconds()
        if seconds or goes_on:
            made[name] = Phase(name=name, began=since, seconds=seconds, now=goes_on)
    return tuple(made.values())


def _created(snapshot: Snapshot) -> datetime | None:
    return fields.at(snapshot.job, "metadata", "creationTimestamp")


def _queued(snapshot: Snapshot, row: Attempt) -> datetime | None:
    """Return when a run began to wait for its place: a later attempt when its pod was made."""
    pod = fields.at(row.pod, "metadata", "creationTimestamp")
    return (_created(snapshot) or pod) if row.started == 1 else pod


def _placed(row: Attempt) -> datetime | None:
    return fields.at(fields.condition(row.pod, "PodScheduled", "True"), "lastTransitionTime")


def _pull(snapshot: Snapshot, row: Attempt) -> tuple[datetime, datetime | None] | None:
    """Return when the node began to pull the image, and when it had it."""
    began = fields.about(snapshot.events, row.pod, "Pulling")
    if not began:
        return None
    done = fields.about(snapshot.events, row.pod, "Pulled")
    since = fields.at(began[0], "firstTimestamp") or fields.when(began[0])
    return since, fields.when(done[-1]) if done else None


def _running(row: Attempt) -> datetime | None:
    wanted = fields.container(row.pod).get("name")
    for status in fields.rows(row.pod, "status", "containerStatuses"):
        if status.get("name") == wanted:
            began = fields.at(status, "state", "running", "startedAt")
            return began or fields.at(status, "state", "terminated", "startedAt")
    return None


def _work(running: datetime, progress: Progress | None) -> list[tuple[str, datetime | None]]:
    """Return when the program compiled, trained and only had to upload, as its records tell."""
    if progress is None or progress.pictures is not None:
        return [("running", running)]
    first, newest = _moment(progress.began), _moment(progress.newest)
    if newest is None or newest < running:  # no step of this attempt so far
        return [("compiling", running)]
    if first is None or first < running:
        return [("running", running)]
    marks: list[tuple[str, datetime | None]] = [("compiling", running), ("training", first)]
    if progress.step is not None and progress.step == progress.steps:
        marks.append(("uploading", newest))
    return marks


def _moment(text: str | None) -> datetime | None:
    return fields.at({"time": text}, "time")
