"""Owns how plain API objects are read, of which any field may be missing or of another shape. Pure.

Must not interpret what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

Object = Mapping[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
"""Annotation of a pod: how many counted failures its index had before it (KEP 3850)."""
IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
LARGEST = 10**10
"""Whole numbers are held to it: seconds of three centuries, which still add to a time."""
_NEVER = datetime.min.replace(tzinfo=UTC)
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2500, 1, 1, tzinfo=UTC)
"""Times are held between them, so that spans can be added."""


def of(found: Any, *path: str) -> Any:
    """Return what lies at a path of keys, or None."""
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def text(found: Any, *path: str) -> str:
    """Return the text at a path, on one line; empty if there is none."""
    value = of(found, *path)
    return " ".join(value.split()) if isinstance(value, str) else ""


def number(found: Any, *path: str) -> int | None:
    """Return the whole number at a path, also one that is written as text."""
    value = of(found, *path)
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return max(-LARGEST, min(LARGEST, value))


def rows(found: Any, *path: str) -> list[Object]:
    """Return the objects of the list at a path; empty if there is none."""
    value = of(found, *path)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def at(found: Any, *path: str) -> datetime | None:
    """Return the time at a path, UTC."""
    value = of(found, *path)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(moment, _FIRST), _LAST)


def name(found: Any) -> str:
    """Return an object's name."""
    return text(found, "metadata", "name")


def uid(found: Any) -> str:
    """Return an object's UID."""
    return text(found, "metadata", "uid")


def condition(found: Any, kind: str, status: str = "") -> Object | None:
    """Return a condition of an object's status, if it is there and has that status."""
    for row in rows(found, "status", "conditions"):
        if row.get("type") == kind and status in ("", row.get("status")):
            return row
    return None


def index(pod: Any) -> int | None:
    """Return the completion index of a Job's pod."""
    found = number(pod, "metadata", "annotations", INDEX)
    return number(pod, "metadata", "labels", INDEX) if found is None else found


def container(pod: Any) -> Object:
    """Return the first container of a pod, which is the job's program; empty if there is none."""
    return next(iter(rows(pod, "spec", "containers")), {})


def statuses(pod: Any) -> list[Object]:
    """Return the states of a pod's containers: those that initialise it first."""
    return rows(pod, "status", "initContainerStatuses") + rows(pod, "status", "containerStatuses")


def ended(pod: Any) -> Object | None:
    """Return how the job's program ended in a pod: exitCode, reason, message, finishedAt."""
    wanted = container(pod).get("name")
    for row in rows(pod, "status", "containerStatuses"):
        found = of(row, "state", "terminated")
        if row.get("name") == wanted and isinstance(found, Mapping):
            return found
    return None


def when(event: Any) -> datetime:
    """Return when an event was last seen."""
    paths = (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",))
    times = (at(event, *path) for path in (*paths, ("metadata", "creationTimestamp")))
    return next((found for found in times if found), _NEVER)


def about(events: Iterable[Object], found: Any, *reasons: str) -> list[Object]:
    """Return the events of one object, of certain reasons if any are named; the newest last."""
    mine = [
        row
        for row in events
        if of(row, "involvedObject", "name") == name(found)
        and of(row, "involvedObject", "uid") in (None, "", uid(found))
        and (not reasons or row.get("reason") in reasons)
    ]
    return sorted(mine, key=when)


def kubectl(found: Object) -> str:
    """Return how kubectl is called for the namespace of an object."""
    namespace = text(found, "metadata", "namespace")
    return f"kubectl -n {namespace}" if namespace else "kubectl"
