"""Owns what the store says of an attempt's end: the run's result, and a node's part of it.

Must not write.
"""

from __future__ import annotations

import json
from typing import Any

from jobs import layout
from jobs.attempt import Attempt
from jobs.errors import PicturesFailed

SHOWN = 20
"""Lines that one reason names."""


def finished(attempt: Attempt) -> bool:
    """Say whether the result, the last thing written, is in the store, or a node's part of it.

    Raises:
        PicturesFailed: the result is, and tells of pictures that could not be made.
    """
    result = document(attempt, layout.key(attempt.env.run, layout.RESULT))
    if result is None:
        return has_part(attempt)
    if result.get("failed"):
        raise PicturesFailed(failed_words(result))
    return True


def has_result(attempt: Attempt) -> bool:
    """Say whether the result is in the store."""
    return document(attempt, layout.key(attempt.env.run, layout.RESULT)) is not None


def has_part(attempt: Attempt) -> bool:
    """Say whether this is one of several nodes, and its part of the result is in the store."""
    node = attempt.claim.node
    return node is not None and part_of(attempt, node) is not None


def part_of(attempt: Attempt, node: int) -> dict[str, Any] | None:
    """Return a node's part of the result, if it is in the store."""
    found = document(attempt, layout.node_key(attempt.env.run, node, layout.PART))
    return found if found and found.get("uid") == attempt.claim.uid else None


def document(attempt: Attempt, key: str) -> dict[str, Any] | None:
    """Return a record; a damaged one is none: what it is made of is still there."""
    try:
        found = json.loads(attempt.store.read(key))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def failed_words(result: dict[str, Any]) -> str:
    """Return `997 of 1,000 pictures; 3 failed: lines 4, 9, 17 (why)` for a result."""
    failures = [row for row in result.get("failures") or () if isinstance(row, dict)]
    lines = [str(line) for line in result["failed"]]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    reasons = "; ".join(dict.fromkeys(str(row.get("reason")) for row in failures))
    told = f" ({reasons})" if reasons else ""
    counts = [result.get(key) for key in ("pictures", "asked")]
    there = " of ".join(f"{count:,}" if isinstance(count, int) else "?" for count in counts)
    return (
        f"{there} pictures; {len(failures) or len(lines)} failed: "
        f"lines {', '.join(lines[:SHOWN])}{more}{told}"
    )
