"""Owns the way through one pod's log: from its first line to its last, none lost, none twice.

The node is asked first; where what it serves does not go on from the last line taken, because it
has rotated that away, the copy in the store is. Must not print, and knows neither API nor store:
both are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from launcher import loglines
from launcher.backends.podlogs import Away, Gone, Idle, State
from launcher.loglines import SECOND, Gap, Line, Resume, Seen

JUMP = SECOND
"""A stream that passed over a file shows a jump in time at least as long as the file grew; nodes
look every 3 s or less often whether a file is full (containerLogMonitorInterval)."""
EARLY = 3 * SECOND
"""So early after a container's start its node has not rotated anything yet."""
PATIENCE_SECONDS = 120.0
"""How long the copy may stand still before a gap is given up: it is sent every 10 s, but behind a
checkpoint."""
POLL_SECONDS = 2.0
FIRST_WAIT, LAST_WAIT = 0.5, 5.0
TRIES = 5
"""How often a node is asked for the log of a container that has ended, when it answers with an
error: it may have removed it."""


class Node(Protocol):
    """What serves the newest file of a pod's log (backends/podlogs.py)."""

    def read(self, since: int | None = None, *, last: bool = False) -> list[Line]: ...
    def follow(self, since: int | None) -> Iterator[list[Line]]: ...
    def head(self) -> int | None: ...
    def state(self) -> State: ...


class Copy(Protocol):
    """What the pod itself has copied into the store (storedlogs.py)."""

    @property
    def there(self) -> bool:
        """Whether there is such a copy, or may be one in a moment; asked after the others."""

    def lines(self) -> list[Line]:
        """Return all lines; none while there is no copy or the store is away."""

    def after(self, tail: Sequence[Line]) -> list[Line] | None:
        """Return the lines that follow `tail`; None if it is not in the copy (yet)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines that follow those of the batch before."""

    lines: Sequence[Line]
    live: bool = False
    """Whether what was there at the start has all been handed over."""


@dataclass
class Reader:
    """Reads one pod; holds how far it has come."""

    node: Node
    copy: Copy
    started: int
    """When the container was started, seconds since the epoch."""
    say: Callable[[str], None]
    trouble: Callable[[Away | None], None]
    """Told of each request that failed, and with None that one succeeded; may raise."""
    since: int | None = None
    """Nothing stamped earlier is needed, seconds since the epoch."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    seen: Seen = field(default_factory=Seen)
    _live: bool = False
    _follow: bool = False

    def batches(self, *, follow: bool) -> Iterator[Batch]:
        """Yield the pod's lines; following, until the pod has ended and all is read."""
        self._follow = follow
        yield from self._start()
        if not follow:
            return
        self._live = True
        yield Batch((), live=True)
        wait = FIRST_WAIT
        while True:
            before = self.seen.last
            try:
                yield from self._stream()
            except Gap:
                yield from self._bridge()
            except Idle:
                continue
            except (Away, Gone) as problem:
                self._tell(problem)
            if self._over():
                yield from self._finish()
                return
            wait = FIRST_WAIT if self.seen.last != before else min(2 * wait, LAST_WAIT)
            self.sleep(wait)

    def _batch(self, lines: Sequence[Line]) -> Batch:
        return Batch(lines, live=self._live)

    def _taken(self, lines: Sequence[Line], *, exact: bool = True) -> Batch:
        self.seen.take(lines, exact=exact)
        return self._batch(lines)

    def _start(self) -> Iterator[Batch]:
        """Yield what there is, from the first line on."""
        window = self._window(self.since)
        if window and self._is_whole(window):
            yield self._taken(window)
            return
        # An empty file may be one that was just begun.
        copied = self._copied(wait=bool(window))
        if copied:
            yield self._taken(copied, exact=False)
        if window and copied:
            yield from self._bridge()
        elif window:
            if self.since is None:
                self.say("its node has rotated the beginning away, and the store has no copy of it")
            yield self._taken(window)

    def _copied(self, *, wait: bool) -> list[Line]:
        """Return all of the copy; followed, its first part may be waited for."""
        patient_until = self.clock() + PATIENCE_SECONDS
        while True:
            over = not (wait and self._follow) or self._over()
            copied = self.copy.lines()
            if copied or over or not self.copy.there or self.clock() > patient_until:
                return copied
            self.sleep(POLL_SECONDS)

    def _is_whole(self, window: Sequence[Line]) -> bool:
        """Say whether nothing that is wanted lies before what the node serves."""
        if loglines.begins(window) or window[0].when < self.started * SECOND + EARLY:
            return True
        if self.since is None:
            return False
        try:
            head = self.node.head()
        except (Away, Gone):
            return False
        return head is not None and head < self.since * SECOND

    def _stream(self) -> Iterator[Batch]:
        """Yield what follows, until the node ends the stream.

        Raises:
            Gap: lines are missing before what would come next.
            Away, Gone, Idle: as the node does.
        """
        if not self.seen.tail:
            # Nothing yet, so nothing to go on from: the first lines have to prove to be the first.
            for _ in self.node.follow(self.since):
                yield from self._start()
                return
            return
        if not self.seen.exact:
            raise Gap  # what was taken last came from the copy
        resume = Resume(self.seen.expected())
        for lines in self.node.follow(self.seen.since):
            self.trouble(None)
            fresh = resume.fresh(lines)
            sound = self._sound(fresh)
            yield self._taken(fresh[:sound])
            if sound < len(fresh):
                raise Gap

    def _sound(self, fresh: Sequence[Line]) -> int:
        """Return how many of the new lines follow for certain what was taken."""
        newest = self.seen.newest
        for at, line in enumerate(fresh):
            if line.when - newest >= JUMP:
                head = self.node.head()
                if head is None or head > newest:
                    return at
            newest = max(newest, line.when)
        return len(fresh)

    def _bridge(self) -> Iterator[Batch]:
        """Yield from the copy what the node does not serve, until both meet again."""
        patient_until = self.clock() + PATIENCE_SECONDS
        while True:
            # Asked before the copy is: what is missing in it then will never come, or too late.
            over, late = self._over(), self.clock() > patient_until
            copied = self.copy.after(list(self.seen.tail))
            if copied:
                patient_until = self.clock() + PATIENCE_SECONDS
                yield self._taken(copied, exact=False)
            window = self._window(self.seen.since, last=over)
            if window is None:
                return  # the pod is gone; the copy ends where it ended
            try:
                fresh = self.seen.unseen(window)
            except Gap:
                if over and loglines.ends(self.seen.last):
                    return
                if not window and copied == [] and not over:
                    patient_until = self.clock() + PATIENCE_SECONDS  # nothing new on either side
                if self.copy.there and (copied or not (over or late)):
                    self.sleep(POLL_SECONDS)
                    continue
                fresh, known = loglines.newer(self.seen, window)
                if not known:
                    self._tell_gap(fresh)
            self.seen.anchor(window, fresh)
            yield self._batch(fresh)
            return

    def _tell_gap(self, fresh: Sequence[Line]) -> None:
        upto = f" and {stamp(fresh[0].when)}" if fresh else ""
        self.say(
            f"lines {'between' if fresh else 'after'} {stamp(self.seen.newest)}{upto} may be"
            " missing: the node has rotated them away, and the store has no copy of them (yet)"
        )

    def _finish(self) -> Iterator[Batch]:
        """Yield what an ended pod still has to say; an answer that is cut short looks complete."""
        idle = 0
        while idle < 2 and not loglines.ends(self.seen.last):
            if not self.seen.tail:
                yield from self._start()
            window = self._window(self.seen.since, last=True)
            if window is None:
                yield self._taken(self.copy.after(list(self.seen.tail)) or (), exact=False)
                return
            try:
                fresh = self.seen.unseen(window)
            except Gap:
                yield from self._bridge()
                return
            idle = 0 if fresh else idle + 1
            yield self._taken(fresh)

    def _window(self, since: int | None, *, last: bool = False) -> list[Line] | None:
        """Return what the node serves, however long it takes; None: it never will again."""
        wait, errors = FIRST_WAIT, 0
        while True:
            try:
                found = self.node.read(since, last=last)
            except (Away, Gone) as problem:
                self._tell(problem)
                state = self._state()
                errors += isinstance(problem, Gone) or problem.answered
                if state == "gone" or (state == "over" and errors >= TRIES):
                    return None
                self.sleep(wait)
                wait = min(2 * wait, LAST_WAIT)
            else:
                self.trouble(None)
                return found

    def _tell(self, problem: Away | Gone) -> None:
        if isinstance(problem, Away):
            self.trouble(problem)

    def _over(self) -> bool:
        return self._state() in ("over", "gone")

    def _state(self) -> State:
        """Return the pod's state, however long it takes to be told."""
        wait = FIRST_WAIT
        while True:
            try:
                found = self.node.state()
            except Away as problem:
                self._tell(problem)
                self.sleep(wait)
                wait = min(2 * wait, LAST_WAIT)
            else:
                return found


def stamp(when: int) -> str:
    """Return a time for people, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when // SECOND))
