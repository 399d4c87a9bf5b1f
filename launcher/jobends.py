"""Owns what a cluster says of the end of a run that is followed by its records alone.

They do not tell when nobody starts a run again: a pod does not know how many retries are left, and
one that is killed leaves no word. Must not read a store, nor fail: a cluster that cannot be asked
is one that says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from launcher import fields
from launcher.backends.kubernetes import Kubernetes
from launcher.errors import LauncherError, NotFound
from launcher.why.explain import explain

AGAIN_SECONDS = 60.0
"""Until a cluster that did not answer is asked once more; the records are looked at meanwhile."""


class JobEnd:
    """Whether the Job of one run has failed or was deleted."""

    def __init__(self, context: str, run: str) -> None:
        self._context, self._run = context, run
        self._cluster: Kubernetes | None = None
        self._seen = False
        self._next = 0.0

    def reason(self, claim: Mapping[str, Any]) -> str:
        """Return why nobody goes on with the run, on one line; empty where that is not known.

        Args:
            claim: the run's, which names its Job and that Job's namespace.
        """
        uid, namespace = fields.text(claim, "uid"), fields.text(claim, "namespace")
        if not uid or not namespace or time.monotonic() < self._next:
            return ""
        try:
            cluster = self._cluster = self._cluster or Kubernetes(self._context, namespace)
            try:
                job = cluster.find(self._run)
            except NotFound:
                job = {}
            if fields.uid(job) != uid:  # gone, or never of this cluster
                return "its Job was deleted" if self._seen else ""
            self._seen = True
            if fields.condition(job, "Failed", "True"):
                return explain(cluster.snapshot(self._run)).line
        except LauncherError:
            self._next = time.monotonic() + AGAIN_SECONDS
        return ""
