"""Owns what the page of a training run shows: its records -> the page's data. Pure.

Must not do I/O. The page (pages/training.js) reads what `data` returns. Of the records it expects a
step and, for a place in time, a time; every other number that a metrics row has becomes a curve, so
that newer trainers may say more, and older ones less.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Row = Mapping[str, Any]

MOST_PICTURES = 240
"""Validation pictures of a run that a page carries: 512 x 512 pixels are about 40 kB each."""
MOST_POINTS = 4000
"""Points of a curve: more than a screen has columns, and little to load."""
GAP_TIMES, GAP_SECONDS = 5.0, 30.0
"""Rows further apart than this many times the usual, and these seconds more, are a pause."""
WELL = (0, 75)
"""Exit codes of attempts that did what they were asked to: to end, or to stop."""
NO_WORD = ": left no word, as when it is killed or its machine is lost"
FAILED = "failed"
"""Lane of the attempts that died."""
LATE = 0.25
"""Marks later than the last row by more than this part of the run say when somebody copied the
store, not when the run did something."""
PHASES = ("start", "encode", "data", "compile", "step", "checkpoint", "validation", "upload")
"""Where time goes: `<phase>_s`, or `<phase>` inside of `seconds`; in result.json of the whole run
(in `<phase>_all_s` where `<phase>_s` is the newest attempt's), in a row of the time since the one
before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A validation picture: its manifest row, a data: URL of a small copy, when it was stored."""

    row: Row
    source: str | None
    stored: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One run, as its records tell of it."""

    run: str
    spec: Row
    result: Row
    metrics: Sequence[Row]
    pictures: Sequence[Picture]
    commits: Mapping[int, float]
    """Step of a checkpoint -> when it was committed (s since the epoch)."""
    about: Row
    """Anything else that is known of the run, as it is shown."""
    attempts: Sequence[Row] = ()
    """What is known of each attempt (jobs.history), in order of its number, `attempt`."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time, or happened at one moment; seconds since the epoch."""

    lane: str
    begin: float
    end: float
    text: str


def data(sources: Sequence[Source]) -> dict[str, object]:
    """Return the page's data."""
    return {"runs": [_run(source) for source in sources]}


def chosen(rows: Iterable[Row], most: int = MOST_PICTURES) -> list[Row]:
    """Return the rows of the validation pictures that a page carries: of steps that lie evenly."""
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        if type(row.get("step")) is int:
            by_step.setdefault(row["step"], []).append(row)
    steps = sorted(by_step)
    widest = max(map(len, by_step.values()), default=1)
    return [row for step in _evenly(steps, max(1, most // widest)) for row in by_step[step]]


def curves(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Return the numbers of the rows by name, in order of step; `step` and `time` are among them.

    What lies one level deeper is named `outer.inner`. A time is in seconds since the epoch.
    """
    flat = {row["step"]: dict(_flat(row)) for row in rows if type(row.get("step")) is int}
    points = [flat[step] for step in _evenly(sorted(flat), MOST_POINTS)]
    names = dict.fromkeys(name for point in points for name in point)
    return {name: [point.get(name) for point in points] for name in names}


def spans(source: Source, found: Mapping[str, Sequence[float | None]]) -> list[Span]:
    """Return the run's timeline, as far as its records have times."""
    pairs = zip(found.get("step", ()), found.get("time", ()), strict=False)
    points = [(step, time) for step, time in pairs if step is not None and time is not None]
    attempts = list(_attempts(source))
    if not points:
        return attempts
    stretches = list(_stretches(points))
    told = [
        Span("steps", part[0][1], part[-1][1], f"steps {part[0][0]:.0f} to {part[-1][0]:.0f}")
        for part in stretches
    ]
    began = stretches[-1][0][1]  # of the last attempt, which wrote the result
    if (compiling := _number(source.result.get("compile_s"))) is not None:
        told.append(Span("compile", began - compiling, began, "compiling, with the first step"))
    for step, when in sorted(source.commits.items()):
        told.append(Span("checkpoints", when, when, f"step {step} committed"))
    for picture in source.pictures:
        took = _number(picture.row.get("seconds")) or 0.0
        text = f"step {picture.row.get('step')}: {picture.row.get('prompt', '')}"
        told.append(Span("validation", picture.stored - took, picture.stored, text))
    first = min(span.begin for span in told if span.lane in ("steps", "compile"))
    last = points[-1][1]
    slack = max(600.0, LATE * (last - first))
    return attempts + [span for span in told if first - slack <= span.end <= last + slack]


def _attempts(source: Source) -> Iterator[Span]:
    """Yield each attempt that has a beginning; those that failed in a lane of their own.

    One that could not say how it ended lasts as long as it has logged.
    """
    logged = {n: row for row in source.metrics if type(n := row.get("attempt")) is int}
    for row, after in itertools.zip_longest(source.attempts, source.attempts[1:]):
        number, begin, code = row["attempt"], moment(row.get("began")), row.get("code")
        if begin is None:
            continue
        newest = logged.get(number, {})
        times = map(moment, (row.get("ended"), row.get("seen"), newest.get("time")))
        end = next((time for time in times if time is not None), begin)
        died = code not in WELL if code is not None else after is not None
        how = f": {code} {row.get('reason', '')}" if code is not None else NO_WORD if died else ""
        step = row.get("step", newest.get("step"))
        far = f" (after step {step})" if how and step is not None else ""
        yield Span(
            FAILED if died else "attempts", begin, max(begin, end), f"attempt {number}{how}{far}"
        )


def split(source: Source, found: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Return where the time went, in seconds by phase.

    The records say it, or it is worked out: `step` from the pace, `other` from the clock.
    """
    told = {}
    result = dict(_flat(source.result))
    for phase in PHASES:
        for name in (f"{phase}_s", f"seconds.{phase}", f"{phase}_all_s"):
            rows = [value for value in found.get(name, ()) if value is not None]
            if name in result or rows:
                told[phase] = result.get(name, sum(rows))
    steps = [step for step in found.get("step", ()) if step is not None]
    pace = _number(source.result.get("ms_per_step"))
    pace = pace or next((ms for ms in reversed(found.get("ms_per_step", ())) if ms), None)
    if steps and pace and "step" not in told:
        told["step"] = pace / 1000 * max(0.0, max(steps) - 1)
    painted: dict[str, float] = {}
    for picture in source.pictures:
        worker = str(picture.row.get("worker"))
        painted[worker] = painted.get(worker, 0.0) + (_number(picture.row.get("seconds")) or 0.0)
    if painted and "validation" not in told:
        told["validation"] = max(painted.values())  # workers paint side by side
    line = spans(source, found)
    clock = max(span.end for span in line) - min(span.begin for span in line) if line else 0.0
    if (rest := clock - sum(told.values())) > 0.01 * clock:
        told["other"] = rest
    return {phase: round(seconds, 3) for phase, seconds in told.items() if seconds > 0}


def moment(value: object) -> float | None:
    """Return an ISO 8601 time as seconds since the epoch; None for anything else."""
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _run(source: Source) -> dict[str, object]:
    found = curves(source.metrics)
    line = spans(source, found)
    return {
        "run": source.run,
        "spec": dict(source.spec),
        "result": {key: v for key, v in source.result.items() if key not in ("run", "kind")},
        "about": {**source.about, **dict(_failures(line))},
        "curves": found,
        "rows": len(source.metrics),
        "spans": [[span.lane, span.begin, span.end, span.text] for span in line],
        "split": split(source, found),
        "pictures": [{**picture.row, "source": picture.source} for picture in source.pictures],
    }


def _failures(line: Iterable[Span]) -> Iterator[tuple[str, str]]:
    for span in line:
        name, _, how = span.text.partition(": ")
        if span.lane == FAILED:
            yield name, how


def _flat(row: Row, before: str = "") -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if key == "time" and not before:
            value = moment(value)
        if (number := _number(value)) is not None:
            yield f"{before}{key}", number
        elif isinstance(value, Mapping) and not before:
            yield from _flat(value, f"{key}.")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _stretches(points: Sequence[tuple[float, float]]) -> Iterator[Sequence[tuple[float, float]]]:
    """Yield the points between pauses: an attempt that ended, a queue, a pod that was lost."""
    paces = [
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in itertools.pairwise(points)
    ]
    usual = statistics.median(paces) if paces else 0.0
    start = 0
    for at in range(1, len(points)):
        steps, seconds = points[at][0] - points[at - 1][0], points[at][1] - points[at - 1][1]
        if seconds > GAP_TIMES * usual * steps + GAP_SECONDS:
            yield points[start:at]
            start = at
    yield points[start:]


def _evenly(values: Sequence[int], most: int) -> list[int]:
    """Return at most that many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[-1]]
    places = {round(index * (len(values) - 1) / (most - 1)) for index in range(most)}
    return [values[place] for place in sorted(places)]
