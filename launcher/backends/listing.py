"""Owns the list of the runs of a namespace, read as kubectl reads it: tables, page by page.

5,000 Jobs as objects are hundreds of MB; as rows of a table they are what a list prints. Must not
explain (explain.py): a row tells a run's state, and the word that its pods have for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launcher import fields
from launcher.backends.apiserver import ApiServer, Query, api_exception, translated
from launcher.backends.snapshots import JOBS, MANAGED, PODS, RUN_LABEL, check_namespace

SELECTOR = ("labelSelector", "=".join(MANAGED))
_LIVING = ("fieldSelector", "status.phase!=Succeeded,status.phase!=Failed")
_GONE = 410
# STATUS of a Job as the server prints it (printers.go of Kubernetes, printJob), since 1.31.
_STATES = {
    "Complete": "succeeded",
    "Failed": "failed",
    "Terminating": "stopping",
    "Suspended": "queued",
    "FailureTarget": "stopping",
    "SuccessCriteriaMet": "stopping",
}
# STATUS of a pod that has begun nothing yet but will, if nothing goes wrong.
_STARTING = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of a list; plain values, as --json prints them."""

    run: str
    kind: str
    state: str
    """queued, pending, starting, running, stopping, succeeded, failed."""
    why: str
    """The word of its pods for a state that lasts, such as ImagePullBackOff; may be empty."""
    ended: str
    """Pods that succeeded, of those that there are to be: 0/1."""
    duration: str
    """As kubectl prints it."""
    submitted: str

    @property
    def told(self) -> str:
        """State and word on one line."""
        return f"{self.state} ({self.why})" if self.why else self.state


def runs(api: ApiServer) -> list[Row]:
    """Return the launcher's runs of the namespace, oldest first.

    Raises:
        Misconfigured: there is no such namespace.
        Forbidden, Unreachable: the cluster refuses, or does not answer.
    """
    jobs, pods = (path.format(namespace=api.namespace) for path in (JOBS, PODS))
    with ThreadPoolExecutor(2) as pool, translated(api.host, "list"):
        living = pool.submit(_living, api, pods)
        found = _whole(api, jobs, [SELECTOR])
        words = living.result()
        if not found:
            check_namespace(api)
    rows = [_row(cells, metadata, words.get(metadata["name"], [])) for cells, metadata in found]
    rows.sort(key=lambda row: (row.submitted, row.run))
    return rows


_Found = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Cells by the name of their column, and the object's metadata."""


def _whole(api: ApiServer, path: str, query: Query) -> list[_Found]:
    """Return a list's rows, read again if the list grew too old between two pages."""
    exception = api_exception()
    try:
        return list(_rows(api, path, query))
    except exception as error:
        if error.status != _GONE:
            raise
        return list(_rows(api, path, query))


def _rows(api: ApiServer, path: str, query: Query) -> Iterator[_Found]:
    for page in api.pages(path, query, table=True):
        if page.get("kind") != "Table":
            raise api.stranger()
        names = [column["name"] for column in page["columnDefinitions"]]
        for row in page["rows"] or ():
            metadata = row["object"]["metadata"]
            kept = {key: metadata.get(key) for key in ("name", "labels", "creationTimestamp")}
            yield dict(zip(names, row["cells"], strict=True)), kept


def _living(api: ApiServer, path: str) -> Mapping[str, Sequence[str]]:
    """Return, by run, the server's words for the states of its pods that have not ended."""
    found: dict[str, list[str]] = defaultdict(list)
    for cells, metadata in _whole(api, path, [SELECTOR, _LIVING]):
        found[fields.text(metadata, "labels", RUN_LABEL)].append(str(cells.get("Status", "")))
    return found


def _row(cells: Mapping[str, Any], metadata: Mapping[str, Any], words: Sequence[str]) -> Row:
    state, why = _state(str(cells.get("Status", "")), words)
    return Row(
        run=str(metadata["name"]),
        kind=fields.text(metadata, "labels", "app.kubernetes.io/component"),
        state=state,
        why=why,
        ended=str(cells.get("Completions", "")),
        duration=str(cells.get("Duration") or ""),
        submitted=str(metadata["creationTimestamp"]),
    )


def _state(status: str, words: Sequence[str]) -> tuple[str, str]:
    """Return the state of a run and what its pods say of it.

    Args:
        status: the Job's, as the server prints it.
        words: its pods', as the server prints them.
    """
    if status in _STATES:
        return _STATES[status], ""
    odd = [word for word in words if word not in ("Running", "Pending", *_STARTING)]
    if odd:
        return ("stopping" if odd[0] == "Terminating" else "pending"), odd[0]
    if not words or "Pending" in words:
        return "pending", ""
    return ("starting" if set(words) & set(_STARTING) else "running"), ""
