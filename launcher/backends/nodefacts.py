"""Owns the fetching of node facts: what each node has, and how much of it pods have asked for.

Must not judge (scheduling.py). Both lists belong to the whole cluster, so that some users may not
read them: then there is less to say, and nothing fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import TypeVar

from launcher import fields
from launcher.backends.apiserver import TIMEOUT, ApiServer, api_exception
from launcher.fields import Object
from launcher.nodes import Node, add, node, requested

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
PAGE = 500
"""Objects a page; all pods of a large cluster are hundreds of megabytes."""
AHEAD = 3
"""Pages that are on their way or wait to be counted: some 3 MB each."""
_HEAD = 4096
"""The list's own metadata, which stands first, is shorter, as a rule."""
_CONTINUE = re.compile(rb'"continue":"([^"]*)"')
_PLACED = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
T = TypeVar("T")
_UNAUTHORIZED = 401
_EXPIRED = 410


def nodes(api: ApiServer, resource: str) -> tuple[Node, ...] | None:
    """Return the cluster's nodes; None if this user may not list them.

    Args:
        api: the cluster.
        resource: the NPUs' extended resource; what is taken is counted on nodes that offer it.

    Raises:
        ApiException: these credentials are not accepted.
        HTTPError: of urllib3, nobody answered.
        Unreachable: what answered is no API server.
    """
    # Side by side: the server writes one list while the other is read.
    with ThreadPoolExecutor(1) as pool:
        listed = pool.submit(_allowed, lambda: _nodes(api))
        taken = _allowed(lambda: _taken(api, resource))
        found = listed.result()
    if not found or taken is None:
        return found
    return tuple(
        replace(row, used=taken.get(row.name, {})) if row.allocatable.get(resource) else row
        for row in found
    )


def _nodes(api: ApiServer) -> tuple[Node, ...]:
    return tuple(node(row) for page in api.pages(NODES, limit=PAGE) for row in page["items"])


def _taken(api: ApiServer, resource: str) -> dict[str, dict[str, int]]:
    """Return what the pods with NPUs on each node ask for; a page is dropped once it is counted."""
    taken: dict[str, dict[str, int]] = {}
    for page in _pages(api):
        for name, asked in counted(page, resource).items():
            add(taken.setdefault(name, {}), asked)
    return taken


def _pages(api: ApiServer) -> Iterator[bytes]:
    """Yield the pages of all pods that take room.

    The next page is asked for as soon as a page's beginning, which names it, has come: the server
    writes it while the rest of this one is read and counted.
    """
    coming: SimpleQueue[Future[bytes] | None] = SimpleQueue()
    room, over = Semaphore(AHEAD), Event()

    def fetch(more: str) -> bytes:
        room.acquire()
        query = [("fieldSelector", _PLACED), ("limit", str(PAGE))]
        query += [("continue", more)] if more else []
        if over.is_set():
            return b""
        with api.stream(PODS, query, TIMEOUT) as answer:
            head = bytes(answer.read(_HEAD))
            if b'"items":' not in head:
                head += bytes(answer.read())
            found = _CONTINUE.search(head, 0, max(0, head.find(b'"items":')))
            coming.put(pool.submit(fetch, found[1].decode()) if found and found[1] else None)
            return head + bytes(answer.read())

    with ThreadPoolExecutor(AHEAD) as pool:
        try:
            page: Future[bytes] | None = pool.submit(fetch, "")
            while page:
                yield page.result()
                room.release()
                page = coming.get()
        finally:  # nobody wants the pages that are still to come
            over.set()
            room.release(AHEAD)


def counted(page: bytes, resource: str) -> dict[str, dict[str, int]]:
    r"""Return what the pods of a page that ask for a resource ask for, by node.

    Only those are parsed, one after the other: all of 20,000 pods took 6 s, and half a pod is its
    history (managedFields). The server writes a pod's fields in one order, and a quote within a
    text as \", so that what is looked for cannot be part of a text; where a server writes them in
    another way, the page is parsed as a whole.
    """
    wanted, found = f'"{resource}":'.encode(), dict[str, dict[str, int]]()
    pods = page.split(b'{"metadata":{"name":')
    try:
        if len(pods) == 1 and b'"items":[]' not in page:
            raise ValueError(page[:80])
        for pod in pods[1:]:
            if wanted in pod:
                begin, end = pod.index(b',"spec":{') + 8, pod.rindex(b',"status":{')
                _count(json.loads(pod[begin:end]), found)
    except ValueError:
        found = {}
        for whole in fields.rows(json.loads(page), "items"):
            spec = fields.of(whole, "spec") or {}
            if requested(spec).get(resource):
                _count(spec, found)
    return found


def _count(spec: Object, found: dict[str, dict[str, int]]) -> None:
    add(found.setdefault(fields.text(spec, "nodeName"), {}), requested(spec))


def _allowed(read: Callable[[], T]) -> T | None:
    """Return what is read; None where the server refuses, or cannot list so much.

    A list that grew too old in the middle (410) is read once more.
    """
    for last in (False, True):
        try:
            return read()
        except api_exception() as error:
            if error.status == _UNAUTHORIZED:
                raise
            if error.status != _EXPIRED or last:
                return None
    return None
