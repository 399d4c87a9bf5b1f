"""Owns what the store's records say of a run of a cluster, as far as this machine can read them.

The store is the pods'; this machine may have no way to it, or no credentials. Then there is less to
say, and nothing fails. Must not ask the cluster.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher import fields
from launcher.errors import LauncherError
from launcher.records import Progress
from launcher.settings import Target

STORE_SECONDS = 5
"""How long a person waits for the store: what the cluster says is there already."""


class Reading:
    """Reads a run's progress beside other work."""

    def __init__(self, job: Mapping[str, Any], target: Target) -> None:
        """Begin to read.

        Args:
            job: the run's Job, which names its store.
            target: how this machine reaches a store.
        """
        self._job, self._target = job, target
        self._found: Progress | None = None
        self._why = f"the store does not answer within {STORE_SECONDS} s"
        # A daemon: what hangs in a dead connection must not keep the program from ending.
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def result(self) -> tuple[Progress | None, str]:
        """Return the progress, or None and why it is not known."""
        self._thread.join(STORE_SECONDS)
        return self._found, "" if self._found is not None else self._why

    def _read(self) -> None:
        try:
            self._found = progress(self._job, self._target)
        except LauncherError as error:
            self._why = error.text
        except OSError as error:
            self._why = " ".join(str(error).split())


def environment(job: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment that a Job gives its program, as the program sees it."""
    template = fields.of(job, "spec", "template")
    rows = fields.rows(fields.container(template), "env")
    # The kubelet turns `$$` into `$` (Kubernetes API reference, EnvVar.value).
    return {
        str(row["name"]): str(row["value"]).replace("$$", "$")
        for row in rows
        if "name" in row and "value" in row
    }


def address(job: Mapping[str, Any]) -> str:
    """Return where a run's records are, as the pods name it; empty if the Job does not say."""
    store = environment(job).get("JOB_STORE", "")
    return f"{store.rstrip('/')}/{fields.name(job)}" if store else ""


def progress(job: Mapping[str, Any], target: Target) -> Progress:
    """Return how far a run is.

    Raises:
        LauncherError: its store cannot be read from here, or a record is damaged.
        OSError: the store failed.
    """
    from jobs.access import Access
    from jobs.errors import BadSpec
    from jobs.stores import FileStore
    from launcher import records, storage
    from launcher.errors import Misconfigured, Unreachable

    known = environment(job)
    try:
        access = Access.read(known)
        spec = json.loads(known["JOB_SPEC"])
    except (BadSpec, KeyError, ValueError) as error:
        raise Misconfigured("its Job names no spec or store that this version reads") from error
    if target.store_endpoint_here:
        access = replace(access, endpoint=target.store_endpoint_here)
    store = storage.opened(known.get("JOB_STORE", ""), access)
    if isinstance(store, FileStore) and not store.root.is_dir():
        raise Unreachable(f"store {store.root}: is not mounted here")
    with storage.asking(store):
        return records.progress(store, fields.name(job), spec)
