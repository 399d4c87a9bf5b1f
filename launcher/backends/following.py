"""Owns the waiting for changes of one run on a cluster: watches on its Job and its pods.

A watch only wakes whoever waits, who then fetches anew: so nothing depends on an unbroken stream,
and a restarted API server, a watch that grew too old (410) or one that died silently cost at most
some seconds. Must not fetch or judge a run.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from launcher.backends.apiserver import ApiServer, api_exception, translated
from launcher.backends.snapshots import JOBS, PODS, RUN_LABEL
from launcher.errors import LauncherError, Unreachable

Pod = Mapping[str, Any]

LISTEN_SECONDS = 30
"""A watch is opened anew so often: a connection that died silently is not noticed otherwise."""
SETTLE_SECONDS = 0.2
"""What comes together (a pod and the Job it belongs to) wakes once."""
_REFUSED = (401, 403)


class Changes:
    """Wakes whoever waits for a change of a run."""

    def __init__(self, api: ApiServer, run: str) -> None:
        """Remember what is watched; watching begins on entry."""
        self._api, self._run = api, run
        self._seen: queue.SimpleQueue[Pod | LauncherError | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._open: set[Any] = set()

    def __enter__(self) -> Self:
        namespace = self._api.namespace
        for path, query in (
            (JOBS, ("fieldSelector", f"metadata.name={self._run}")),
            (PODS, ("labelSelector", f"{RUN_LABEL}={self._run}")),
        ):
            place = path.format(namespace=namespace)
            threading.Thread(target=self._listen, args=(place, query), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the watches: an API server that is to stop waits for those that are open."""
        self._over.set()
        for stream in list(self._open):
            with suppress(ValueError, RuntimeError, OSError):  # it has just ended by itself
                stream.shutdown()

    def wait(self, seconds: float) -> list[Pod]:
        """Return at the next change, or after so many seconds.

        Returns:
            The pods that changed, as they were; those that are gone meanwhile among them.

        Raises:
            Forbidden: the watch is refused.
        """
        found: list[Pod] = []
        try:
            first = self._seen.get(timeout=seconds)
        except queue.Empty:
            return found
        time.sleep(SETTLE_SECONDS)
        rows = [first]
        while not self._seen.empty():
            rows.append(self._seen.get())
        for row in rows:
            if isinstance(row, LauncherError):
                raise row
            if row is not None:
                found.append(row)
        return found

    def _listen(self, path: str, query: tuple[str, str]) -> None:
        """Watch until the end, through whatever befalls the server."""
        pause, allowed = 0.0, False
        while not self._over.wait(pause):
            try:
                with translated(self._api.host, self._run):
                    self._read(path, query)
                pause, allowed = 1.0, True
            except (Unreachable, OSError, ValueError):
                pause = min(5.0, pause + 1)
                self._seen.put(None)  # whose own fetch finds out what is wrong
            except LauncherError as error:
                if not allowed:
                    self._seen.put(error)
                    return
                # A server that was just started refuses everything until it knows its roles.
                pause = min(5.0, pause + 1)
            except Exception:
                if not self._over.is_set():  # else the stream was ended under its reader
                    raise

    def _read(self, path: str, query: tuple[str, str]) -> None:
        """Read one watch until it ends; what it begins with is what there is."""
        marks = [query, ("watch", "1"), ("timeoutSeconds", str(LISTEN_SECONDS))]
        with self._api.stream(path, marks, (5, LISTEN_SECONDS + 10)) as stream:
            self._open.add(stream)
            try:
                rest = b""
                for chunk in stream.stream(65536, decode_content=True):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
            finally:
                self._open.discard(stream)

    def _take(self, event: Any) -> None:
        found = event.get("object", {})
        if event.get("type") == "ERROR":
            if found.get("code") in _REFUSED:
                status = api_exception()(status=found["code"], reason=found.get("message"))
                raise status
            return  # 410 and its like: the watch ends now, and is opened anew
        self._seen.put(found if found.get("kind") == "Pod" else None)
