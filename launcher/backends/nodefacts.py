"""Owns the fetching of node facts: what each node has, and how much of it pods have asked for.

Must not judge (scheduling.py). Both lists belong to the whole cluster, so that some users may not
read them: then there is less to say, and nothing fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from launcher import fields
from launcher.backends.apiserver import TIMEOUT, ApiServer, api_exception
from launcher.fields import Object
from launcher.nodes import Node, add, node, requested

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
PAGE = 500
"""Objects a page; all pods of a large cluster are hundreds of megabytes."""
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
    found = _allowed(lambda: _nodes(api))
    if not found:
        return found
    offering = {row.name for row in found if row.allocatable.get(resource)}
    taken = _allowed(lambda: _taken(api, offering, resource))
    if taken is None:
        return found
    return tuple(
        replace(row, used=taken.get(row.name, {})) if row.name in offering else row for row in found
    )


def _nodes(api: ApiServer) -> tuple[Node, ...]:
    return tuple(node(row) for page in api.pages(NODES, limit=PAGE) for row in page["items"])


def _taken(api: ApiServer, names: set[str], resource: str) -> dict[str, dict[str, int]]:
    """Return what the pods with NPUs on each of the named nodes ask for.

    The next page is fetched while this one is counted, and a page is dropped once it is.
    """
    taken: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(1) as pool:
        coming: Future[bytes] | None = pool.submit(_page, api, "")
        while coming:
            page = coming.result()
            found = _CONTINUE.search(page, 0, max(0, page.find(b'"items":')))
            more = found[1].decode() if found else ""
            coming = pool.submit(_page, api, more) if more else None
            for node, asked in counted(page, resource).items():
                if node in names:
                    add(taken.setdefault(node, {}), asked)
    return taken


def _page(api: ApiServer, more: str) -> bytes:
    query = [("fieldSelector", _PLACED), ("limit", str(PAGE))]
    query += [("continue", more)] if more else []
    with api.stream(PODS, query, TIMEOUT) as answer:
        return bytes(answer.read())


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
