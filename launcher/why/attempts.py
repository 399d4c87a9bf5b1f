"""Owns the attempts at each index of a Job: the newest pod, retries used, the next one. Pure.

Must not say why (endings.py, podreasons.py). The back-off is the Job controller's: 10 s, doubled by
each failure of the index, ignored ones too, up to 10 minutes (KEP 3850, pkg/controller/job).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from launcher import fields
from launcher.fields import Object
from launcher.why import endings
from launcher.why.endings import Ending

BACKOFF = timedelta(seconds=10)
LONGEST = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The newest pod of an index."""

    index: int
    pod: Object
    ending: Ending | None
    """How it ended; None while it lives."""
    failures: int
    """Counted failures of its index, this one included."""
    free: int
    """Failures that were not counted, this one included."""
    started: int
    """Attempts at this index, this one included."""

    @property
    def next_at(self) -> datetime | None:
        """When the pod after this ended one is made, at the earliest."""
        if self.ending is None or self.ending.finished is None:
            return None
        doublings = max(0, self.failures + self.free - 1)
        wait = min(LONGEST, BACKOFF * (1 << min(doublings, 10)))
        return self.ending.finished + wait


def newest(pods: Iterable[Object]) -> tuple[Attempt, ...]:
    """Return the newest attempt at each index that has a pod, by index.

    Args:
        pods: oldest first.
    """
    last: dict[int, Object] = {}
    for pod in pods:
        last[fields.index(pod) or 0] = pod
    return tuple(_attempt(index, pod) for index, pod in sorted(last.items()))


def _attempt(index: int, pod: Object) -> Attempt:
    ended = endings.ending(pod)
    failures = fields.number(pod, "metadata", "annotations", fields.FAILURES) or 0
    free = fields.number(pod, "metadata", "annotations", fields.IGNORED) or 0
    started = failures + free + 1
    if ended is not None:
        failures += ended.retry == "counted"
        free += ended.retry == "free"
    return Attempt(
        index=index, pod=pod, ending=ended, failures=failures, free=free, started=started
    )


def indexes(text: str) -> set[int]:
    """Return the indexes of a Job's status, such as `0,2-4`; what is not one is passed over."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return found


def spans(found: Sequence[int]) -> str:
    """Return indexes for people: 0, 2-4."""
    parts: list[list[int]] = []
    for index in sorted(found):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
