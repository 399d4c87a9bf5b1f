"""Owns one pod's log as its node serves it, through the API server: read it, follow it, its head.

What the node serves is the newest file of the container's log and nothing older (kubelet, since
it rotates by itself): a read never crosses a rotation, a stream that goes on may pass over a whole
file when its reader was slow. Must not decide what is missing (podreader.py) nor print.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from launcher import fields
from launcher.backends.apiserver import ApiServer, api_exception, message_of
from launcher.backends.refusals import transport
from launcher.backends.snapshots import PODS
from launcher.loglines import Line, all_parsed, parsed

Query = list[tuple[str, str]]
State = Literal["waiting", "running", "over", "gone"]

CONNECT_SECONDS = 5
IDLE_SECONDS = 30.0
"""A silent stream is opened again: a balancer may have dropped it without a word, and a node's
stream may hang on a file that was rotated away. Balancers' own limits begin at 60 s."""
READ_SECONDS = 30.0
_STAMP_BYTES = 64
"""More than an RFC 3339 time has."""


class Away(Exception):
    """The API server or the node does not answer now; the same request may succeed later."""

    def __init__(self, text: str, *, refused: bool = False, answered: bool = False) -> None:
        super().__init__(text)
        self.refused = refused
        """Whether the server refuses us, as one that has just been started does, too."""
        self.answered = answered
        """Whether a server said so, and not merely nobody."""


class Idle(Exception):
    """Nothing came for a while."""


class Gone(Exception):
    """There is no such object any more."""


@contextmanager
def asking() -> Iterator[None]:
    """Turn what client and transport raise into Away and Gone.

    Raises:
        Away: nobody answers, or the answer is an error that may pass.
        Gone: it is not there.
    """
    from urllib3.exceptions import HTTPError

    try:
        yield
    except api_exception() as error:
        if error.status == 404:
            raise Gone(message_of(error)) from error
        refused = error.status in (401, 403)
        raise Away(message_of(error), refused=refused, answered=True) from error
    except HTTPError as error:
        raise Away(transport(error)) from error


class PodLog:
    """The log of one pod's container."""

    def __init__(self, api: ApiServer, pod: Mapping[str, Any]) -> None:
        self._api = api
        self._path = f"{PODS.format(namespace=api.namespace)}/{fields.name(pod)}"
        self._uid = fields.uid(pod)
        self._container = str(fields.container(pod).get("name", ""))

    def read(self, since: int | None = None, *, last: bool = False) -> list[Line]:
        """Return what the node has in its newest file.

        Args:
            since: seconds since the epoch of the oldest line; None for all.
            last: whether the container has ended, and a line without an end is whole.

        Raises:
            Away, Gone: see `asking`; Gone also while the node knows no such container.
        """
        rows: list[bytes] = []
        with asking(), self._opened(self._query(since), READ_SECONDS) as answer:
            text = answer.read()
        *rows, rest = text.split(b"\n")
        return all_parsed([*rows, rest] if last and rest else rows)

    def follow(self, since: int | None) -> Iterator[list[Line]]:
        """Yield the node's lines as they come, until it ends the stream.

        A line is handed on when its end has come: half a line is served again, whole, next time.

        Raises:
            Away, Gone: as `read` does.
            Idle: nothing came for a while.
        """
        from urllib3.exceptions import ReadTimeoutError

        rest, before = b"", None
        with (
            asking(),
            self._opened([*self._query(since), ("follow", "true")], IDLE_SECONDS) as answer,
        ):
            try:
                for chunk in answer.stream(1 << 16):
                    *rows, rest = (rest + chunk).split(b"\n")
                    if lines := all_parsed(rows, before):
                        before = lines[-1]
                        yield lines
            except ReadTimeoutError as error:
                raise Idle from error

    def head(self) -> int | None:
        """Return the time of the first line in the node's newest file, ns; None if it is empty.

        Raises:
            Away, Gone: as `read` does.
        """
        query = [*self._query(None), ("limitBytes", str(_STAMP_BYTES))]
        with asking(), self._opened(query, READ_SECONDS) as answer:
            line = parsed(answer.read().partition(b"\n")[0])
        return line.when if line else None

    def state(self) -> State:
        """Return what the container does.

        Raises:
            Away: as `read` does.
        """
        try:
            with asking():
                found = self._api.get(self._path)
        except Gone:
            return "gone"
        return state_of(found) if fields.uid(found) == self._uid else "gone"

    def _opened(self, query: Query, seconds: float) -> Any:
        return self._api.stream(f"{self._path}/log", query, (CONNECT_SECONDS, seconds))

    def _query(self, since: int | None) -> Query:
        query = [("container", self._container), ("timestamps", "true")]
        if since is not None:
            # Whole seconds: the API server passes no fractions on to the node.
            query.append(("sinceTime", rfc3339(since)))
        return query


def rfc3339(seconds: int) -> str:
    """Return a time (s since the epoch) as the API server reads it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def state_of(pod: Mapping[str, Any]) -> State:
    """Return what a pod's program does."""
    if fields.text(pod, "status", "phase") in ("Succeeded", "Failed") or fields.ended(pod):
        return "over"
    return "waiting" if started(pod) is None else "running"


def started(pod: Mapping[str, Any]) -> int | None:
    """Return when a pod's program was started, seconds since the epoch; None: not yet, or never."""
    wanted = fields.container(pod).get("name")
    for row in fields.rows(pod, "status", "containerStatuses"):
        if row.get("name") != wanted:
            continue
        for state in ("running", "terminated"):
            if found := fields.at(row, "state", state, "startedAt"):
                return int(found.timestamp())
    return None
