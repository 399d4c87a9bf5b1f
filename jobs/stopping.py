"""Owns the request to stop: how PID 1 hears of it, and since when.

Must import next to nothing: the kernel drops a signal of PID 1 that comes before its handler.
"""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger("jobs.runtime")


@dataclass
class StopRequest:
    """Set by the signal handler, read by everyone else."""

    since: float | None = None
    """Moment of the request in monotonic seconds."""


def heed() -> StopRequest:
    """Return what SIGTERM and SIGINT ask for from now on."""
    stop = StopRequest()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.since is None:
            stop.since = time.monotonic()
            log.warning("signal=%s; checkpoint and stop", signal.Signals(number).name)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop
