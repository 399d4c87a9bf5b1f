"""The modules that act on the world: `local` on processes, `kubernetes` on a cluster.

Nothing here is shared by them but this description of a run's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["running", "succeeded", "failed", "stopped", "interrupted"]
"""`stopped`: on request, a newer step committed. `interrupted`: killed before it could say why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a backend knows of a run without reading its records."""

    name: str
    kind: str
    state: State
    code: int | None
    """Exit code of the last attempt; none while it runs and when it was killed."""
    reason: str
    """The job's own one line on how it ended."""
    submitted: str
    """Time of the first submission, ISO 8601, UTC."""
    resumable: bool
    """Whether the same submission again would go on from the last commit."""
