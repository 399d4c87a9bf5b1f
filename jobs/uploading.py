"""Owns the uploader process as the supervisor sees it: started, started again, waited for.

Must not move a byte itself (sync.py).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from dataclasses import asdict

from jobs.attempt import Attempt
from jobs.errors import BY_EXIT, JobError, Unavailable
from jobs.msrun import die_with_parent

log = logging.getLogger("jobs.runtime")

PROGRAM = (sys.executable, "-m", "jobs.sync")
POLL_SECONDS = 0.2
MOST_RESTARTS = 5
"""How often an uploader that was killed is started again; one that gives a reason is not."""
MARGIN = 1.3
"""The next commit may take that much longer than the newest one did."""
LEAST_SHARE, MOST_SHARE = 0.1, 0.9
GUESS = 0.5
"""Part of the grace period that is kept for the upload when none has been measured."""


class Uploading:
    """The uploader of one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        """Start it with the attempt's claim."""
        self._attempt = attempt
        self._restarts = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*PROGRAM, json.dumps(asdict(self._attempt.claim))],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )

    def check(self) -> None:
        """Start it again if it was killed: it goes on where it was, by its part tables.

        Raises:
            JobError: it gave a reason to end, or was killed too often.
        """
        code = self.process.poll()
        if code in (None, 0):
            return
        path = self._attempt.env.work / "uploader-reason"
        if path.exists():
            number, _, reason = path.read_text(encoding="utf-8").partition(" ")
            raise BY_EXIT[int(number)](reason)
        if code in BY_EXIT:
            told = self._attempt.outbox.no_space() or "its last line tells"
            raise BY_EXIT[code](f"the uploader left no reason; {told}")
        if self._restarts == MOST_RESTARTS:
            raise JobError(f"the uploader ended with {code} for the {MOST_RESTARTS + 1}th time")
        self._restarts += 1
        log.warning("uploader=ended code=%d; starting it again", code)
        self.process = self._start()

    def drain(self) -> None:
        """Tell it that nothing new will appear, and wait until all is in the store.

        Raises:
            JobError: it gave up, or did not end inside the grace period.
        """
        attempt = self._attempt
        attempt.outbox.done.touch()
        while self.process.poll() != 0:
            self.check()
            if attempt.stop.since is not None:
                left = attempt.stop.since + attempt.env.grace_seconds - 2 - time.monotonic()
                if left <= 0:
                    raise Unavailable("stopped: the upload did not end inside the grace period")
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """Kill it if it lives."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def upload_seconds(attempt: Attempt) -> float:
    """Return how much of the grace period the upload of one more checkpoint needs, in seconds.

    Measured by the newest commit of this attempt; before there is one, half of the period.
    """
    grace = attempt.env.grace_seconds
    try:
        needed = MARGIN * float(json.loads(attempt.outbox.rate.read_bytes())["seconds"]) + 2
    except (OSError, ValueError, KeyError, TypeError):
        return GUESS * grace
    return min(MOST_SHARE * grace, max(LEAST_SHARE * grace, needed))
