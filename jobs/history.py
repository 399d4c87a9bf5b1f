"""Owns what a run's records tell of its attempts: when each began, and how it ended.

The newest attempt writes it, with `spec.json`: one that was killed can't, and `end.json` is the
newest one's alone. Must not judge an end, nor know of steps that were lost but by their rows.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from jobs import layout
from jobs.stores import Store

Row = dict[str, Any]

KEPT = 200
"""Attempts that are told of, the first and the newest ones: a run on spare nodes has thousands."""
_OF_END = ("code", "name", "reason")


def history(store: Store, run: str, attempt: int, began: datetime) -> list[Row]:
    """Return a row of each attempt so far, in order; to be called before its records change.

    A row has `attempt` and `began`; of one that is over `ended`, `code`, `name` and `reason`, as
    far as it could still tell them, and `step` and `seen`, the last step it logged and when. An
    attempt that ended before it had its run's state has no row.

    Args:
        store: the run's.
        run: its name.
        attempt: the number of the one that begins now.
        began: when.

    Raises:
        OSError: the store failed.
    """
    rows = _rows(_document(store, layout.key(run, layout.SPEC)).get("history"))
    rows = [row for row in rows if row["attempt"] < attempt]
    if rows and "ended" not in rows[-1]:
        last = rows[-1]["attempt"]
        rows[-1] |= _ended(_document(store, layout.key(run, layout.END)), last)
        rows[-1] |= _seen(store, run, last)
    rows.append({"attempt": attempt, "began": began.isoformat(timespec="seconds")})
    return rows if len(rows) <= KEPT else [rows[0], *rows[1 - KEPT :]]


def wall_seconds(rows: list[Row], now: datetime) -> float | None:
    """Return the seconds since the run's first attempt began, waits between attempts included.

    None where the first attempt is not told of: an older version of this suite wrote no history.
    """
    try:
        first = next(row for row in rows if row["attempt"] == 1)
        return max(0.0, (now - datetime.fromisoformat(first["began"])).total_seconds())
    except (StopIteration, KeyError, TypeError, ValueError):
        return None


def now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(UTC)


def _ended(end: Row, attempt: int) -> Row:
    if end.get("attempt") != attempt:
        return {}
    return {"ended": end.get("time")} | {key: end[key] for key in _OF_END if key in end}


def _seen(store: Store, run: str, attempt: int) -> Row:
    """Return the last step that an attempt logged, and when: its rows may go with its lost work."""
    lines = reversed(_read(store, layout.key(run, layout.METRICS)).splitlines())
    row = next(filter(None, map(_object, lines)), {})  # the last one may be half written
    return (
        {"step": row.get("step"), "seen": row.get("time")} if row.get("attempt") == attempt else {}
    )


def _rows(found: object) -> list[Row]:
    """Return the rows that are ones: the record may be somebody's edit."""
    rows = found if isinstance(found, list) else []
    return [row for row in rows if isinstance(row, dict) and type(row.get("attempt")) is int]


def _document(store: Store, key: str) -> Row:
    return _object(_read(store, key))


def _object(text: bytes) -> Row:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(store: Store, key: str) -> bytes:
    try:
        return store.read(key)
    except FileNotFoundError:
        return b""
