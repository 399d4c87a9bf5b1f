"""Owns the thread beside the painting: decoded pictures -> PNG files in the outbox.

A PNG of 1024 x 1024 takes some 0.4 s of one core and a flush of the disk, in which the device
paints the next batch. Must not paint or judge pictures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from jobs import pictures
from jobs.outbox import Outbox


class Developer:
    """Hands pictures over in the order in which they come; holds at most `most` of them."""

    def __init__(self, outbox: Outbox, most: int) -> None:
        """Start the thread."""
        self._outbox, self._most = outbox, most
        self._pool = ThreadPoolExecutor(1, "developer")
        self._pending: deque[Future[None]] = deque()
        self.seconds = 0.0
        """Time the thread has worked."""

    def give(
        self,
        name: str,
        decoded: NDArray[np.float32],
        texts: Mapping[str, str],
        row: dict[str, object],
    ) -> None:
        """Take a picture [3, H, W] with its texts and its manifest row.

        Raises:
            OSError: an earlier one could not be written.
        """
        while len(self._pending) >= self._most:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._develop, name, decoded, texts, row))

    def _develop(
        self,
        name: str,
        decoded: NDArray[np.float32],
        texts: Mapping[str, str],
        row: dict[str, object],
    ) -> None:
        began = time.monotonic()
        png = pictures.to_png(pictures.to_pixels(decoded), texts)
        self._outbox.picture(name, png, row)
        self.seconds += time.monotonic() - began

    def finish(self) -> None:
        """Wait until all are handed over, and end the thread.

        Raises:
            OSError: one could not be written.
        """
        try:
            while self._pending:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
