"""Owns what the container's cgroup tells of its memory: limit, peak, processes killed for it.

Must not judge an attempt (verdict.py). Sources: the kernel's admin guides cgroup-v2 (memory.max,
memory.peak since 5.19, memory.events) and cgroup-v1/memory (memory.oom_control counts since 4.13).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""In a container its own cgroup; on a machine the root, which has no limit."""
NO_LIMIT = 1 << 62
"""Version 1 says of no limit that it is 2^63, rounded down to pages."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of a container's memory, in bytes; None: not known, or there is no such."""

    limit: int | None = None
    peak: int | None = None
    """Of programs and of the files that the kernel keeps for them."""
    kills: int = 0
    """Processes that the kernel has killed at the limit."""

    def __str__(self) -> str:
        """Return `peak 3.1 GiB of 8.0 GiB`; empty where there is no limit."""
        if self.limit is None:
            return ""
        peak = "not known" if self.peak is None else f"{self.peak / GIB:.1f} GiB"
        return f"peak {peak} of {self.limit / GIB:.1f} GiB"


def read(root: Path = ROOT) -> Memory:
    """Return what the cgroup at `root` tells; nothing where it has no limit."""
    limit = _number(root / "memory.max")
    if limit is not None:
        kills = _count(root / "memory.events")
        return Memory(limit, _number(root / "memory.peak"), kills)
    first = root / "memory"
    limit = _number(first / "memory.limit_in_bytes")
    if limit is None or limit >= NO_LIMIT:
        return Memory()
    kills = _count(first / "memory.oom_control")
    return Memory(limit, _number(first / "memory.max_usage_in_bytes"), kills)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file; `max`
        return None


def _count(path: Path) -> int:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0
