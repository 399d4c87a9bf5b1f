"""Owns the logs of a run in the store: what each pod has copied there, and the workers' own files.

Must not know of clusters. The copies outlive pods and nodes; they are as new as the last upload.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from jobs import layout
from jobs.stores import Entry, Store
from launcher import storage
from launcher.errors import LauncherError
from launcher.loglines import SECOND, SLACK, Line, all_parsed, parsed, place

T = TypeVar("T")

KEPT_PARTS = 4
"""Parts that are kept in memory, 1 MiB each as text."""
YOUNG_SECONDS = 120
"""A pod may print for so long before its first copy is in the store: it restores first."""
_WORKER = re.compile(r"/attempt-(\d+)/worker_(\d+)\.log$")
_NAME = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\d{3})Z")
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class Copied:
    """What one pod has copied so far."""

    node: int
    started: int
    """When it began, ns since the epoch."""
    parts: tuple[Entry, ...]


@dataclass
class Copies:
    """The copies of one run; a store that is away or not set holds none, and is told once."""

    store: Store | None
    run: str
    say: Callable[[str], None]
    told: set[str] = field(default_factory=set)
    """What was said already; may be shared."""
    _kept: dict[tuple[str, int], list[Line]] = field(default_factory=dict)

    @property
    def there(self) -> bool:
        """Whether there is a store that has not failed yet."""
        return self.store is not None and not self.told

    def found(self, node: int | None = None) -> list[Copied]:
        """Return what the pods of a node (None: of all) have copied, oldest first."""
        folder = layout.console_folder(node) if node is not None else "node-"
        prefix = layout.key(self.run, layout.LOGS, folder) + ("/" if node is not None else "")
        rows: dict[tuple[int, str], list[tuple[int, Entry]]] = {}
        for entry in self._asked(lambda store: list(store.list(prefix))) or ():
            if of := layout.console_of(entry.key):
                rows.setdefault(of[:2], []).append((of[2], entry))
        return sorted(
            (
                Copied(index, _nanoseconds(name), tuple(entry for _, entry in sorted(parts)))
                for (index, name), parts in rows.items()
            ),
            key=lambda copied: copied.started,
        )

    def lines(self, copied: Copied) -> list[Line]:
        """Return the lines of a copy."""
        return [line for part in copied.parts for line in self.part(part)]

    def part(self, part: Entry) -> list[Line]:
        """Return the lines of a part of a copy."""
        if (kept := self._kept.get((part.key, part.size))) is not None:
            return kept
        data = self._asked(partial(_read, part.key)) or b""
        *rows, _ = data.split(b"\n")  # a copy may end in the middle of a line
        lines = all_parsed(rows)
        while len(self._kept) >= KEPT_PARTS:
            del self._kept[next(iter(self._kept))]
        self._kept[part.key, len(data)] = lines
        return lines

    def workers(self) -> list[Line]:
        """Return the lines of the workers' own files, for runs of an image that copies nothing."""
        prefix = layout.key(self.run, layout.LOGS, "attempt-")
        found: list[tuple[int, int, Line]] = []
        for entry in self._asked(lambda store: list(store.list(prefix))) or ():
            name = _WORKER.search(entry.key)
            if name is None:
                continue
            attempt, rank, when = int(name[1]), int(name[2]), 0
            data = self._asked(partial(_read, entry.key)) or b""
            for row in data.splitlines():
                when = time_in(row) or when
                found.append((attempt, when, Line(when, b"[%d] %b" % (rank, row))))
        found.sort(key=lambda row: row[:2])
        return [line for _, _, line in found]

    def _asked(self, ask: Callable[[Store], T]) -> T | None:
        """Return what the store answers; None while it does not, which is told once."""
        if self.store is None:
            return None
        try:
            with storage.asking(self.store):
                return ask(self.store)
        except LauncherError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None  # removed since it was listed
            if error.text not in self.told:
                self.told.add(error.text)
                self.say(f"the copy of the log cannot be read: {error.text}")
            return None


@dataclass
class PodCopy:
    """The copy of one pod's log, found by when the pod was started."""

    copies: Copies
    node: int
    started: int
    """Seconds since the epoch; the node's clock made both times."""
    clock: Callable[[], float] = time.time
    _found: bool = False

    @property
    def there(self) -> bool:
        """Whether there is such a copy, or may be one in a moment."""
        young = self.clock() < self.started + YOUNG_SECONDS
        return self.copies.there and (self._found or young)

    def copied(self) -> Copied | None:
        """Return the pod's copy as it is now: the first that began after the pod did."""
        for copied in self.copies.found(self.node):
            if copied.started >= self.started * SECOND:
                self._found = True
                return copied
        return None

    def lines(self) -> list[Line]:
        """Return all that was copied; nothing while there is no copy."""
        copied = self.copied()
        return self.copies.lines(copied) if copied else []

    def after(self, tail: Sequence[Line]) -> list[Line] | None:
        """Return the lines that follow `tail`; None if it is not in the copy (yet)."""
        copied = self.copied()
        if copied is None:
            return None
        if not tail:
            return self.copies.lines(copied)
        lines: list[Line] = []
        for part in reversed(copied.parts):
            lines = [*self.copies.part(part), *lines]
            # A part that begins before the tail holds enough of it to be sure.
            if part == copied.parts[0] or (lines and lines[0].when < tail[0].when - SECOND):
                at = place(tail, lines)
                if at is not None:
                    return lines[at:]
                if lines and lines[0].when < tail[0].when - SLACK:
                    return None
        return None


def _read(key: str, store: Store) -> bytes:
    return store.read(key)


def time_in(row: bytes) -> int | None:
    """Return the time that a line of our own tells, ns since the epoch, whole seconds."""
    found = _TIME.search(row[:64])
    line = parsed(found[0]) if found else None
    return line.when if line else None


def _nanoseconds(name: str) -> int:
    """Return when a copy began, from its name (layout.console_name)."""
    found = _NAME.fullmatch(name)
    assert found is not None, "layout.console_of lets no other pass"
    *parts, milliseconds = map(int, found.groups())
    return (calendar.timegm(tuple(parts)) * 1000 + milliseconds) * 10**6
