"""Owns the progress line of a transfer: bytes, rate, time left; on stderr, for people.

Must not know what is moved. Also carries Ctrl-C to the threads that move it: they call `moved` all
the time, and end there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from types import FrameType, TracebackType
from typing import Any, Self

from launcher import output

GOES_ON = "interrupted: the same command goes on with it"
REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0
"""Between lines where nobody watches live: a log should not fill with them."""
LEAVE_SECONDS = 5.0
"""Between Ctrl-C and the end of the process, whatever its threads wait for: a network that stands
still would hold a person for a minute. What was moved is kept as if the process had been killed."""
INTERRUPTED = 130
WINDOW_SECONDS = 15.0
"""What the rate is taken over: long enough to be calm, short enough to follow the network."""


class Meter:
    """Counts bytes from any thread and tells how far they are; a context manager.

    Args:
        what: what is done, such as `fetch`.
        total: bytes that there are in all.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._live = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._started = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._drawn = False
        self._before: Any = None
        self._ticker = threading.Thread(target=self._tick, name="meter", daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGINT)
            if callable(self._before):  # where it is ignored it stays so
                signal.signal(signal.SIGINT, self._interrupt)
        self._ticker.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._ticker.join()
        if callable(self._before):
            signal.signal(signal.SIGINT, self._before)
        with self._lock:
            self._wipe()

    def moved(self, count: int) -> None:
        """Count bytes.

        Raises:
            KeyboardInterrupt: the person wants no more; also in threads that no signal reaches.
        """
        if self._stopped.is_set():
            raise KeyboardInterrupt
        with self._lock:
            self._done += count

    def data(self, text: str) -> None:
        """Write a line of data to stdout, clear of the progress line.

        Raises:
            ReaderGone: the reader has closed the pipe.
        """
        with self._lock:
            self._wipe()
            output.data(text)

    def seconds(self) -> float:
        """Return how long it has taken so far."""
        return time.monotonic() - self._started

    def line(self, now: float) -> str:
        """Return the progress at the moment `now` of time.monotonic()."""
        self._seen.append((now, self._done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (self._done - before) / (now - since) if now > since else 0.0
        parts = [f"{self._what}: {output.size(self._done)} of {output.size(self._total)}"]
        parts.append(f"{output.size(round(rate))}/s")
        if rate > 0:
            parts.append(f"about {output.duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._stopped.set()
        leave = threading.Timer(LEAVE_SECONDS, self._leave)
        leave.daemon = True
        leave.start()
        self._before(number, frame)

    def _leave(self) -> None:
        if not self._ended.is_set():
            output.say(GOES_ON)
        os._exit(INTERRUPTED)

    def _tick(self) -> None:
        while not self._ended.wait(REDRAW_SECONDS if self._live else LINE_SECONDS):
            with self._lock:
                text = self.line(time.monotonic())
                if self._live:
                    self._wipe()
                    output.raw_aside(text.encode())
                    self._drawn = True
                else:
                    output.say(text)

    def _wipe(self) -> None:
        if self._drawn:
            output.raw_aside(b"\r\x1b[K")  # begin of line, erase to its end (ECMA-48 EL)
            self._drawn = False
