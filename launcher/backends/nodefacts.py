"""Owns the fetching of node facts: what each node has, and how much of it pods have asked for.

Must not judge (scheduling.py). Both lists belong to the whole cluster, so that some users may not
read them: then there is less to say, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from launcher.backends.apiserver import ApiServer, api_exception
from launcher.nodes import Node, add, node, requested

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
PAGE = 500
"""Objects a page: a page of pods takes some 20 MB here, and all of a large cluster gigabytes."""
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
    taken = _allowed(lambda: _taken(api, offering))
    if taken is None:
        return found
    return tuple(
        replace(row, used=taken.get(row.name, {})) if row.name in offering else row for row in found
    )


def _nodes(api: ApiServer) -> tuple[Node, ...]:
    return tuple(node(row) for page in api.pages(NODES, limit=PAGE) for row in page["items"])


def _taken(api: ApiServer, names: set[str]) -> dict[str, dict[str, int]]:
    """Return what the pods on each of the named nodes ask for; a page is dropped once counted."""
    taken: dict[str, dict[str, int]] = {}
    for page in api.pages(PODS, [("fieldSelector", _PLACED)], limit=PAGE):
        for pod in page["items"]:
            spec = pod["spec"]
            if spec["nodeName"] in names:
                add(taken.setdefault(spec["nodeName"], {}), requested(spec))
    return taken


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
