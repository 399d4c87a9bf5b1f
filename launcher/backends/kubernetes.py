"""Owns a run on a cluster: try its Job there, create it.

Must not decide anything about a run nor build a manifest. Sends what it is given as it is, so that
`submit` and `--dry-run -o yaml | kubectl create -f -` create the same Job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from launcher.backends.apiserver import ApiServer, api_exception, message_of, translated
from launcher.errors import Misconfigured, Unreachable
from launcher.plan import JobPlan

Manifest = Mapping[str, Any]

OLDEST = (1, 31)
"""podFailurePolicy is stable from 1.31 on (KEP 3329); older servers drop it without a word."""
# A pod that is refused for these is no reason to refuse the Job: the person may create Jobs without
# being allowed to create pods, and a Job waits until the quota has room.
_TOLERATED = re.compile(r'cannot create resource "pods"|exceeded quota')


@dataclass(frozen=True, slots=True)
class Submitted:
    """A Job that was created."""

    namespace: str
    name: str
    uid: str


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
    ) -> Submitted:
        """Create the Job, once; whatever would refuse it is asked first.

        Args:
            plan: the run.
            manifest: the Job.
            prepare: entered between the asking and the create, for what the Job will need.

        Raises:
            NameTaken: a Job of that name exists.
            Forbidden: the user may not, or a policy refuses the Job or its pods.
            Misconfigured: server too old, no such namespace, or an invalid manifest.
            Unreachable: no server, or none that answers in time.
        """
        self.dry_run_server(manifest)
        with prepare or nullcontext():
            return self._create(plan, manifest)

    def _create(self, plan: JobPlan, manifest: Manifest) -> Submitted:
        try:
            with translated(self.server, plan.name):
                created = self._post(_JOBS, manifest)["metadata"]
        except Unreachable as error:
            # The request may have got through and only its answer been lost.
            hint = f"see whether it exists: kubectl get job {plan.name}"
            raise Unreachable(error.text, hint) from error
        return Submitted(created["namespace"], created["name"], created["uid"])

    def dry_run_server(self, manifest: Manifest) -> None:
        """Let the server judge the Job, and its pod as well: a Job passes whose pods are refused.

        Raises:
            LauncherError: as for `submit`; nothing is created in any case.
        """
        name = manifest["metadata"]["name"]
        with translated(self.server, name):
            self._check_version()
            self._post(_JOBS, manifest, dry_run=True)
            try:
                self._post(_PODS, _first_pod(manifest), dry_run=True)
            except api_exception() as error:
                if error.status != 403 or not _TOLERATED.search(message_of(error)):
                    raise

    def _check_version(self) -> None:
        found = self.api.get("/version")
        try:  # a minor version may be "33+"
            version = tuple(int(re.sub(r"\D", "", found[part])) for part in ("major", "minor"))
        except (TypeError, KeyError, ValueError) as error:
            raise self.api.stranger() from error
        if version < OLDEST:
            raise Misconfigured(
                f"cluster {self.server}: is Kubernetes {found['gitVersion']}, which ignores "
                "podFailurePolicy",
                f"a cluster of {OLDEST[0]}.{OLDEST[1]} or newer is needed",
            )

    def _post(self, path: str, body: Manifest, *, dry_run: bool = False) -> Any:
        namespace = body["metadata"].get("namespace") or self.namespace
        query = [("dryRun", "All")] * dry_run
        return self.api.post(path.format(namespace=namespace), body, query)


_JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"
_PODS = "/api/v1/namespaces/{namespace}/pods"


def _first_pod(manifest: Manifest) -> dict[str, Any]:
    """Return the pod that the Job controller would make for index 0."""
    template = manifest["spec"]["template"]
    metadata = {"generateName": f"{manifest['metadata']['name']}-0-"}
    if namespace := manifest["metadata"].get("namespace"):
        metadata["namespace"] = namespace
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template.get("metadata", {}), **metadata},
        "spec": template["spec"],
    }
