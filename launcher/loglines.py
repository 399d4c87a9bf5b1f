"""Owns the lines of a log: read with their times, known again, found in a copy, chosen, prefixed.

Pure. Must not know where lines come from. Two sources serve the same lines: a node, which stamps
them when they arrive there, and the copy in the store, stamped a moment earlier (jobs/console.py).
"""

from __future__ import annotations

import calendar
import re
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

SECOND = 10**9
"""Times are nanoseconds since the epoch, UTC."""
CONTEXT = 50
"""Lines before a place that prove it is the same place in another source."""
PROOF = 5
"""Least of them: a repeated line, such as an empty one, proves nothing alone."""
SLACK = 30 * SECOND
"""Most that the stamps of one line differ: a node that is out of breath reads late."""
CLOSE = SECOND // 20
"""Most that they differ where little else proves that it is the same line."""

_BEGIN = re.compile(rb" I jobs\.runtime (?:node=|jobs=)")
_END = re.compile(rb" [IE] jobs\.runtime exit=\d+ ")
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_RANK = re.compile(rb"\[(\d+)\] ")


class Line(NamedTuple):
    """One line of a pod's log."""

    when: int
    text: bytes
    """Without its end."""


def parsed(row: bytes) -> Line | None:
    """Return the line of a row `<RFC 3339 time> <text>`, or None if it has no time."""
    head, _, text = row.partition(b" ")
    found = _STAMP.fullmatch(head)
    if found is None:
        return None
    fraction = (found[2] or b"").ljust(9, b"0")
    return Line(_seconds(found[1], found[3]) * SECOND + int(fraction), text)


@lru_cache(maxsize=256)
def _seconds(stamp: bytes, zone: bytes) -> int:
    """Return seconds since the epoch; a node may stamp in a zone of its own."""
    seconds = calendar.timegm(time.strptime(stamp.decode(), "%Y-%m-%dT%H:%M:%S"))
    if zone == b"Z":
        return seconds
    offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
    return seconds - offset if zone[:1] == b"+" else seconds + offset


def all_parsed(rows: Iterable[bytes], before: Line | None = None) -> list[Line]:
    """Return the lines of rows; one without a time goes on from the row before it.

    Without a row before it, it is the end of a line that began before what was asked for.
    """
    lines: list[Line] = []
    for row in rows:
        line = parsed(row)
        if line is None and before is not None:
            line = Line(before.when, row)
        if line is not None:
            lines.append(line)
            before = line
    return lines


def begins(lines: Sequence[Line]) -> bool:
    """Say whether a pod's first words are among them, behind what its image may say before."""
    return any(_BEGIN.search(line.text) for line in lines[:CONTEXT])


def ends(line: Line | None) -> bool:
    """Say whether a line is a pod's last word."""
    return line is not None and _END.search(line.text) is not None


class Gap(Exception):
    """What is served does not go on where the lines taken end."""


class Seen:
    """The newest lines that were taken, to know them again when they are served once more."""

    def __init__(self) -> None:
        self.tail: deque[Line] = deque(maxlen=CONTEXT)
        self.newest = 0
        self.exact = True
        """Whether the stamps are the node's: then a line is known by its stamp, too."""
        self._recent: deque[Line] = deque()

    def take(self, lines: Sequence[Line], *, exact: bool = True) -> None:
        """Remember lines that were taken from the node (`exact`), or from the copy."""
        if not lines:
            return
        if not exact:
            self._recent.clear()
        self.exact = exact
        self.tail.extend(lines[-CONTEXT:])
        self.newest = max(self.newest, max(line.when for line in lines))
        if exact:
            self._recent.extend(lines)
            first = self.since * SECOND
            while self._recent and self._recent[0].when < first:
                self._recent.popleft()

    def anchor(self, window: Sequence[Line], fresh: Sequence[Line]) -> None:
        """Remember that a node serves `window`, of which `fresh` had not been taken."""
        self._recent.clear()
        self.exact = True
        self.tail.extend(fresh[-CONTEXT:])
        self.newest = max((line.when for line in window), default=self.newest)
        first = self.since * SECOND
        self._recent.extend(line for line in window if line.when >= first)

    @property
    def last(self) -> Line | None:
        """The newest line."""
        return self.tail[-1] if self.tail else None

    @property
    def since(self) -> int:
        """Whole seconds to ask from, since a node takes no others.

        One more than needed, because stamps of stdout and stderr may cross.
        """
        return max(0, self.newest // SECOND - 1)

    def expected(self) -> list[Line]:
        """Return the lines that a node serves again when asked from `since`."""
        first = self.since * SECOND
        return [line for line in self._recent if line.when >= first]

    def unseen(self, window: Sequence[Line]) -> list[Line]:
        """Return what follows the lines taken in all that a node serves from `since` on.

        Raises:
            Gap: it does not go on where they end.
        """
        if not self.tail:
            return list(window)
        if self.exact:
            if not window and self._recent:
                raise Gap  # a file that was just begun
            return Resume(self.expected()).fresh(window)
        at = place(list(self.tail), window)
        if at is None:
            raise Gap
        return list(window[at:])


class Resume:
    """Takes the lines of a stream that was opened again, and lets the new ones pass."""

    def __init__(self, expected: Sequence[Line]) -> None:
        self._expected = expected
        self._at: int | None = None

    @property
    def pending(self) -> bool:
        """Whether lines that were taken before are still to come."""
        return bool(self._expected) and (self._at is None or self._at < len(self._expected))

    def fresh(self, lines: Sequence[Line]) -> list[Line]:
        """Return the lines that are new.

        Raises:
            Gap: the stream begins after what was taken, since the node has rotated its file.
        """
        taken = 0
        while self.pending and taken < len(lines):
            line = lines[taken]
            if self._at is None:
                # A file that was rotated within these seconds begins with a later one of them.
                if line not in self._expected:
                    raise Gap
                self._at = self._expected.index(line)
            elif line != self._expected[self._at]:
                raise Gap
            self._at += 1
            taken += 1
        return list(lines[taken:])


def place(tail: Sequence[Line], window: Sequence[Line], *, proof: int = PROOF) -> int | None:
    """Return where a window goes on after `tail`, lines of another source; None: nowhere.

    Stamps differ between sources, and texts may be repeated: the place is where most lines before
    it are the same, and of equal ones the nearest in time. A window that holds nothing but the last
    lines of the tail has too few to compare; then the stamps have to be close.

    Args:
        tail: the lines taken last.
        window: lines without a hole.
        proof: how many lines have to be the same.
    """
    need = min(proof, len(tail))
    best: tuple[int, int, int] | None = None
    for at, line in enumerate(window):
        apart = abs(line.when - tail[-1].when)
        if line.text != tail[-1].text or apart > SLACK:
            continue
        same, most = 1, min(at + 1, len(tail))
        while same < most and window[at - same].text == tail[-1 - same].text:
            same += 1
        proven = same >= need or (same == len(window) and apart <= CLOSE)
        if proven and (best is None or (same, -apart) > best[:2]):
            best = (same, -apart, at + 1)
    return best[2] if best else None


def newer(seen: Seen, window: Sequence[Line]) -> tuple[list[Line], bool]:
    """Return the best guess of what is new where nothing connects for certain.

    Returns:
        The lines, and whether the last line that was taken is among those before them.
    """
    at = None if seen.exact else place(list(seen.tail), window, proof=1)
    if at is not None:
        return list(window[at:]), True
    return [line for line in window if line.when > seen.newest], False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which lines somebody wants to see."""

    rank: int | None = None
    """Only this worker's; None: all, and the supervisors'."""
    since: int | None = None
    """Only lines stamped then or later."""
    tail: int | None = None
    """Only the last ones of what is there at the start."""
    grep: re.Pattern[str] | None = None

    def wants(self, line: Line) -> bool:
        """Say whether the line is wanted, wherever it stands."""
        if self.since is not None and line.when < self.since:
            return False
        if self.rank is not None:
            found = _RANK.match(line.text)
            if found is None or int(found[1]) != self.rank:
                return False
        return self.grep is None or bool(self.grep.search(line.text.decode("utf-8", "replace")))

    def of(self, lines: Iterable[Line]) -> list[Line]:
        """Return the wanted ones."""
        return [line for line in lines if self.wants(line)]


def printed(lines: Iterable[Line], prefix: bytes = b"") -> bytes:
    """Return lines as they are shown."""
    return b"".join(b"%b%b\n" % (prefix, line.text) for line in lines)
