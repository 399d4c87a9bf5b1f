"""Owns the verb `logs`: whose log, which lines; and the log of a run of this machine.

Must not know how a cluster's log is read (clusterlogs.py).
"""

from __future__ import annotations

import re
import time
from collections import deque

from launcher import durations, loglines, output, places, runs
from launcher.backends import localrun
from launcher.errors import Usage
from launcher.loglines import SECOND, Choice, Line
from launcher.settings import Settings
from launcher.storedlogs import time_in


def choose(*, rank: int | None, since: str | None, tail: int | None, grep: str | None) -> Choice:
    """Return what the flags ask for.

    Raises:
        Usage: a flag's value means nothing.
    """
    begin = None
    if since is not None:
        begin = time.time_ns() - durations.seconds(since, "--since") * SECOND
    return Choice(rank=rank, since=begin, tail=tail, grep=_pattern(grep))


def _pattern(grep: str | None) -> re.Pattern[str] | None:
    if grep is None:
        return None
    try:
        return re.compile(grep)
    except re.error as error:
        raise Usage(
            f"--grep {grep!r}: is no regular expression: {error}",
            "Python's syntax; a backslash before a sign takes it as it is",
        ) from error


def show(settings: Settings, run: str, choice: Choice, *, follow: bool) -> None:
    """Print the log of a run; following, until it ends, and end as it did.

    Raises:
        RunFailed: the run that was followed did not succeed.
        LauncherError: there is no such run, or who knows it does not answer.
    """
    files = places.here(settings, run)
    if files is None:
        from launcher import clusterlogs

        clusterlogs.show(settings, run, choice, follow=follow)
        return
    sieve = _Sieve(choice)
    offset = sieve.backlog(files)
    if follow:
        try:
            runs.watch(files, offset, sieve, places.flags(settings))
        finally:
            sieve.end()


class _Sieve:
    """Prints the wanted lines of what it is given piece by piece."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._rest = b""
        self._when = 0
        self._held: deque[Line] | None = None

    def backlog(self, files: localrun.Files) -> int:
        """Print what there is; return how many bytes that was."""
        if self._choice.tail is not None:
            self._held = deque(maxlen=self._choice.tail)
        size = 0
        for chunk in localrun.log(files):
            size += len(chunk)
            self(chunk)
        if not localrun.alive(files):
            self.end()
        held, self._held = self._held, None
        output.raw(loglines.printed(held or ()))
        return size

    def end(self) -> None:
        """Print a last line that has no end."""
        if self._rest:
            self(b"\n")

    def __call__(self, chunk: bytes) -> None:
        """Take a piece; a line is printed when its end has come."""
        *rows, self._rest = (self._rest + chunk).split(b"\n")
        lines = []
        for row in rows:
            # A line that tells no time, as in a traceback, goes on from the one before.
            self._when = time_in(row) or self._when
            lines.append(Line(self._when, row))
        wanted = self._choice.of(lines)
        if self._held is not None:
            self._held.extend(wanted)
        else:
            output.raw(loglines.printed(wanted))
