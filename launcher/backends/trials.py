"""Owns the trial of a Job before it is created: version, Job, queue's engine, pod; all dry runs.

Must not create anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher import queues
from launcher.backends.apiserver import ApiServer, api_exception, message_of, translated
from launcher.backends.snapshots import JOBS, PODS
from launcher.errors import Misconfigured
from launcher.why import admission

Manifest = Mapping[str, Any]

OLDEST = (1, 31)
"""podFailurePolicy is stable from 1.31 on (KEP 3329); older servers drop it without a word."""
# A person may create Jobs without being allowed to create pods.
_NOT_ASKED = 'cannot create resource "pods"'
_DRY = [("dryRun", "All")]


def tried(api: ApiServer, manifest: Manifest) -> str:
    """Let the server judge the Job, and its pod as well: a Job passes whose pods are refused.

    Returns:
        Why the pod has to wait; empty if it has not: a quota is no reason to refuse a Job.

    Raises:
        NameTaken: a Job of that name exists.
        Forbidden: the user may not, or a policy refuses the Job or its pods.
        Misconfigured: server too old, no such namespace or engine, or an invalid manifest.
        Unreachable: no server, or none that answers in time.
    """
    namespace = manifest["metadata"].get("namespace") or api.namespace
    with translated(api.host, manifest["metadata"]["name"]):
        _check_version(api)
        api.post(JOBS.format(namespace=namespace), manifest, _DRY)
        _check_engine(api, manifest)
        try:
            api.post(PODS.format(namespace=namespace), _first_pod(manifest), _DRY)
        except api_exception() as error:
            text = message_of(error)
            if error.status not in (403, 422):
                raise
            if _NOT_ASKED in text:
                return ""
            reason = admission.meaning(text, namespace)
            if reason.word == "quota":
                return reason.line
            if reason.word in admission.WRONG:
                raise Misconfigured(f"pod: {reason.line}", reason.next_step) from error
            raise
    return ""


def _check_version(api: ApiServer) -> None:
    found = api.get("/version")
    try:  # a minor version may be "33+"
        version = tuple(int(re.sub(r"\D", "", found[part])) for part in ("major", "minor"))
    except (TypeError, KeyError, ValueError) as error:
        raise api.stranger() from error
    if version < OLDEST:
        raise Misconfigured(
            f"cluster {api.host}: is Kubernetes {found['gitVersion']}, which ignores "
            "podFailurePolicy",
            f"a cluster of {OLDEST[0]}.{OLDEST[1]} or newer is needed",
        )


def _check_engine(api: ApiServer, manifest: Manifest) -> None:
    """Refuse what would wait for ever for an engine that nobody installed."""
    group = queues.api_group(manifest)
    if not group:
        return
    try:
        api.get(f"/apis/{group}")
    except api_exception() as error:
        if error.status != 404:
            raise
        raise Misconfigured(
            f"queue: this cluster has no {group}, and the run would wait for ever",
            "install the engine, or submit without --queue and queue_engine",
        ) from error


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
