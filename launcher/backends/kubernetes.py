"""Owns a run on a cluster: try its Job there, create it, find it, delete it.

Must not decide anything about a run nor build a manifest. Sends what it is given as it is, so that
`submit` and `--dry-run -o yaml | kubectl create -f -` create the same Job. Lists are listing.py's,
and all that belongs to one run is snapshots.py's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from launcher import fields
from launcher.backends import listing, snapshots, trials
from launcher.backends.apiserver import ApiServer, api_exception, translated
from launcher.backends.listing import Row
from launcher.backends.snapshots import JOBS, PODS
from launcher.errors import LauncherError, NameTaken, NotFound, Unreachable
from launcher.plan import SPEC_DIGEST, JobPlan
from launcher.snapshot import Snapshot

Manifest = Mapping[str, Any]

LOOKS = (0, 2, 5)
"""Seconds before each look for a Job whose create was not answered; a server may be restarting."""
KILLING = 1
"""Seconds of grace of `cancel --now`, kubectl's own for --now: the kubelet kills, and says when it
is done. With 0 the pod's name would be gone while its processes still hold the NPUs."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A Job that was created, or was there already."""

    namespace: str
    name: str
    uid: str
    existed: bool = False
    """Whether it is the one of an earlier submission of the same spec."""
    waits: str = ""
    """Why its pods cannot be made yet, if so."""


class Kubernetes:
    """One cluster and namespace of the kubeconfig, or the cluster this process runs in."""

    def __init__(self, context: str = "", namespace: str = "") -> None:
        """Read the kubeconfig; nothing is sent yet.

        Raises:
            Unreachable: there is no kubeconfig.
            Misconfigured: it cannot be read, or has no such context.
        """
        self.api = ApiServer(context, namespace)
        self.namespace = self.api.namespace
        self.server = self.api.host

    def submit(
        self,
        plan: JobPlan,
        manifest: Manifest,
        prepare: AbstractContextManager[None, bool | None] | None = None,
        *,
        idempotent: bool = False,
    ) -> Submitted:
        """Create the Job, once; whatever would refuse it is asked first.

        Args:
            plan: the run.
            manifest: the Job.
            prepare: entered between the asking and the create, for what the Job will need.
            idempotent: return the Job of that name if it was submitted with the same spec.

        Raises:
            NameTaken: a Job of that name exists.
            Forbidden: the user may not, or a policy refuses the Job or its pods.
            Misconfigured: server too old, no such namespace, or an invalid manifest.
            Unreachable: no server, or none that answers in time.
        """
        try:
            waits = self.dry_run_server(manifest)
            with prepare or nullcontext():
                return replace(self._create(plan, manifest), waits=waits)
        except NameTaken:
            if not idempotent:
                raise
            return self._same(plan, manifest)

    def _create(self, plan: JobPlan, manifest: Manifest) -> Submitted:
        namespace = manifest["metadata"].get("namespace") or self.namespace
        try:
            with translated(self.server, plan.name):
                created = self.api.post(JOBS.format(namespace=namespace), manifest)
            if not fields.uid(created):
                raise self.api.stranger()
        except Unreachable as error:
            # The request may have got through and only its answer been lost.
            return self._found_after(error, plan, manifest)
        metadata = created["metadata"]
        return Submitted(metadata["namespace"], metadata["name"], metadata["uid"])

    def _found_after(self, error: Unreachable, plan: JobPlan, manifest: Manifest) -> Submitted:
        """Return the Job if it is there in spite of an answer that was lost; its name was free."""
        for seconds in LOOKS:
            time.sleep(seconds)
            try:
                found = self._same(plan, manifest)
            except NotFound as gone:
                hint = f"run {plan.name!r} was not created; submit it again"
                raise Unreachable(error.text, hint) from gone
            except NameTaken:
                raise  # somebody else's, created meanwhile
            except LauncherError:
                continue
            return Submitted(found.namespace, found.name, found.uid)
        # Only its Job could tell; the name keeps a second submission from starting it twice.
        hint = f"it may exist: launcher status {plan.name}, or submit again with --idempotent"
        raise Unreachable(error.text, hint) from error

    def _same(self, plan: JobPlan, manifest: Manifest) -> Submitted:
        """Return the run of that name.

        Raises:
            NameTaken: it was submitted with another spec, image, store or size, or is being
                deleted.
            LauncherError: as `find` does.
        """
        found = self.find(plan.name)
        metadata = found["metadata"]
        if "deletionTimestamp" in metadata:
            raise NameTaken(f"run {plan.name!r}: is being cancelled", "wait until it is gone")
        digest = plan.annotations[SPEC_DIGEST]
        if fields.text(found, "metadata", "annotations", SPEC_DIGEST) != digest:
            raise NameTaken(
                f"run {plan.name!r}: exists with another spec",
                "choose another --name, or repeat its values",
            )
        if other := _differing(found, manifest):
            raise NameTaken(
                f"run {plan.name!r}: exists with the same spec and another {other}",
                "choose another --name, or repeat its values",
            )
        return Submitted(metadata["namespace"], metadata["name"], metadata["uid"], existed=True)

    def runs(self) -> list[Row]:
        """Return the launcher's runs of the namespace, oldest first.

        Raises:
            Misconfigured: there is no such namespace.
            Forbidden, Unreachable: the cluster refuses, or does not answer.
        """
        return listing.runs(self.api)

    def find(self, run: str) -> Mapping[str, Any]:
        """Return a run's Job.

        Raises:
            NotFound: there is no such Job.
            Misconfigured: it is not the launcher's, or there is no such namespace.
            Forbidden, Unreachable: the cluster refuses, or does not answer.
        """
        return snapshots.job(self.api, run)

    def snapshot(self, run: str) -> Snapshot:
        """Return all that the cluster says of a run.

        Raises:
            LauncherError: as `find` does.
        """
        return snapshots.snapshot(self.api, run)

    def cancel(self, job: Mapping[str, Any], *, now: bool = False) -> None:
        """Delete a Job and, before it goes, its pods; return at once.

        Each pod gets its grace period, within which the run saves what it has.

        Args:
            job: as `find` returned it; another Job of that name is left alone.
            now: kill the pods instead.

        Raises:
            NotFound: it is gone already.
            Forbidden, Unreachable: the cluster refuses, or does not answer.
        """
        name, uid = fields.name(job), fields.uid(job)
        how: dict[str, Any] = {"preconditions": {"uid": uid}}
        with translated(self.server, name):
            path = f"{JOBS.format(namespace=self.namespace)}/{name}"
            try:
                self.api.delete(path, {**how, "propagationPolicy": "Foreground"})
            except api_exception() as error:
                if error.status in (404, 409):  # 409: the name is another Job's by now
                    raise NotFound(f"run {name!r}: is gone already") from error
                raise
            if now:
                self._kill(name, uid)

    def _kill(self, run: str, job: str) -> None:
        """Delete the pods of a Job with no time to end; raises as `ApiServer.delete`."""
        at = datetime.now(UTC)
        for pod in snapshots.pods_of(self.api, run):
            owners = fields.rows(pod, "metadata", "ownerReferences")
            if job not in [row.get("uid") for row in owners]:
                continue
            # Nobody is left to confirm the end of a pod whose node is lost.
            grace = 0 if snapshots.overdue(pod, at) else KILLING
            path = f"{PODS.format(namespace=self.namespace)}/{fields.name(pod)}"
            body = {"gracePeriodSeconds": grace, "preconditions": {"uid": fields.uid(pod)}}
            try:
                self.api.delete(path, body)
            except api_exception() as error:
                if error.status not in (404, 409):
                    raise

    def dry_run_server(self, manifest: Manifest) -> str:
        """Let the server judge the Job and its pod; return why the pod has to wait, if it has.

        Raises:
            LauncherError: as for `submit`; nothing is created in any case.
        """
        return trials.tried(self.api, manifest)


def _differing(found: Mapping[str, Any], manifest: Manifest) -> str:
    """Return what a Job was submitted with that is not in the spec and differs; empty if nothing.

    What a server, a queue or a webhook adds does not count.
    """
    for name, path in _BESIDES.items():
        if fields.of(found, *path) != fields.of(manifest, *path):
            return name
    ours, theirs = (
        fields.container(fields.of(job, "spec", "template")) for job in (manifest, found)
    )
    if ours.get("image") != theirs.get("image"):
        return "image"
    old = {row.get("name"): row.get("value") for row in fields.rows(theirs, "env")}
    for row in fields.rows(ours, "env"):
        if "value" in row and old.get(row.get("name")) != row["value"]:
            return _VARIABLES.get(str(row.get("name")), str(row.get("name")))
    return ""


_BESIDES = {
    "--nodes": ("spec", "completions"),
    "--max-duration": ("spec", "activeDeadlineSeconds"),
    "--queue": ("metadata", "labels", "kueue.x-k8s.io/queue-name"),
}
_VARIABLES = {"JOB_STORE": "store", "JOB_WORKERS": "--npus"}
