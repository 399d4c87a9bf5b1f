"""Owns the digests of local files, remembered between attempts by path, size and time of change.

Hashing a base model takes seconds and a large data set minutes, at each start. Must not decide
what a digest is good for.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobs.outbox import write_whole
from jobs.stores import sha256_of

SETTLED_SECONDS = 2.0
"""A file younger than this may change again within the resolution of its time: not remembered."""


@dataclass
class Digests:
    """What is remembered in a folder; one file a worker, so that none waits for another."""

    folder: Path
    rank: int
    known: dict[str, list[object]] = field(default_factory=dict)
    seen: dict[str, list[object]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, rank: int) -> Digests:
        """Return all that any worker has remembered; what is damaged is forgotten."""
        known: dict[str, list[object]] = {}
        for path in sorted(folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                known |= json.loads(path.read_bytes())
        return cls(folder, rank, known)

    def of(self, path: Path) -> str:
        """Return the file's SHA-256, hex."""
        real = path.resolve()
        facts = real.stat()
        identity: list[object] = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
        row = self.known.get(str(real))
        if isinstance(row, list) and row[:3] == identity and len(row) == 4:
            self.seen[str(real)] = row
            return str(row[3])
        digest = sha256_of(real)
        if time.time() - facts.st_mtime > SETTLED_SECONDS:
            self.seen[str(real)] = [*identity, digest]
        return digest

    def save(self) -> None:
        """Remember what was asked for; a folder that takes nothing costs only time later."""
        with contextlib.suppress(OSError):
            write_whole(self.folder / f"{self.rank}.json", json.dumps(self.seen).encode())
