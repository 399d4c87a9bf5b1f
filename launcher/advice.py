"""Owns what a submission to a cluster is warned of: what seldom works there, and fails late.

Pure. Must not refuse anything (plan.py does), nor ask a cluster (doctor does).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from launcher import output, queues, sizes
from launcher.plan import JobPlan, grace_seconds
from launcher.settings import KUEUE, Target

if TYPE_CHECKING:  # brings pydantic
    from jobs.specs import Spec

Manifest = Mapping[str, Any]
_SILENT_MINUTES = 30
"""How long graph compilation may take without a line (settings.Target.stall_minutes)."""


def warnings(spec: Spec, target: Target, plan: JobPlan, base: Manifest) -> list[str]:
    """Return one line for each thing that is likely to go wrong.

    Args:
        spec: what the run does.
        target: where it goes.
        plan: what was decided about it.
        base: the manifest that is patched; what it mounts and sets is an administrator's word.
    """
    return [
        *_grace(spec, target),
        *_nodes(target, plan),
        *_queue(target),
        *_idle(spec, plan),
        *_clock(target, plan),
        *_stall(target),
        *_store(target, base),
        *_paths(spec, base),
    ]


def _grace(spec: Spec, target: Target) -> Iterator[str]:
    """Tell that the grace that the cluster keeps is too short."""
    need, most = sizes.grace_seconds(spec, target.upload_mib_per_second), target.max_grace_seconds
    if grace_seconds(spec, target) >= need:
        return
    state, rate = sizes.state_bytes(spec), target.upload_mib_per_second
    if not state:
        yield (
            f"max_grace_seconds {most}: a stopped pod needs {need} s to end and upload its"
            " pictures, and may have to paint the last ones again"
        )
        return
    rest = most - sizes.grace_seconds(spec, sys.maxsize)  # what is left for the upload
    enough = f", a store of {-(-state // sizes.MIB // rest)} MiB/s nothing" if rest > 0 else ""
    yield (
        f"max_grace_seconds {most}: a stopped pod needs {need} s to save and upload"
        f" {output.size(state)} at {rate} MiB/s, so that a stop may cost all since the last"
        f" checkpoint; a smaller save_every costs less{enough}"
    )


def _nodes(target: Target, plan: JobPlan) -> Iterator[str]:
    if plan.nodes == 1:
        return
    if plan.subdomain and not queues.places_whole(target):
        yield (
            f"--nodes {plan.nodes}: without a gang two runs may each get a part of their nodes and"
            f" wait for the rest, {target.rendezvous_minutes} minutes at most (rendezvous_minutes);"
            " --queue and queue_engine place a run whole or not at all"
        )


def _queue(target: Target) -> Iterator[str]:
    if target.queue_engine == KUEUE and not target.queue:
        yield "queue_engine kueue: no queue is set, so that the run passes Kueue by; --queue NAME"


def _idle(spec: Spec, plan: JobPlan) -> Iterator[str]:
    """Tell of NPUs that there are no pictures for: a worker paints whole batches."""
    if spec.kind != "infer" or not isinstance(spec.prompts, tuple) or spec.only:
        return  # of prompts that wait in the store there are many
    pictures = sum(row.images or spec.images for row in spec.prompts)
    batches, npus = -(-pictures // spec.batch_size), plan.npus * plan.nodes
    if batches < npus:
        yield (
            f"{output.counted(pictures, 'picture')} in batches of {spec.batch_size} keep at most"
            f" {batches} of {npus} NPUs busy"
        )


def _clock(target: Target, plan: JobPlan) -> Iterator[str]:
    if plan.deadline_seconds and queues.engine(target) not in ("", KUEUE):
        yield (
            "--max-duration: counts from the create, so that the time in the queue is part of it;"
            " only Kueue stops the clock there"
        )


def _stall(target: Target) -> Iterator[str]:
    if target.stall_minutes < _SILENT_MINUTES:
        yield (
            f"stall_minutes {target.stall_minutes}: on NPUs a worker that compiles its graphs is"
            f" silent for up to {_SILENT_MINUTES} minutes, and would be ended as stalled"
        )


def _store(target: Target, base: Manifest) -> Iterator[str]:
    url = target.store
    if url.startswith("s3://") and not target.store_secret and not _has_credentials(base):
        yield (
            f"store_secret: is not set; unless node or account bring credentials, the pods cannot"
            f" open {url}"
        )
    ways = {
        "store_endpoint": "set it to the address that pods reach, and store_endpoint_here to this",
        "hub_endpoint": "set it to the address that pods reach",
    }
    for key, way in ways.items():
        value = getattr(target, key)
        if value and _loopback(value):
            yield f"{key} {value}: is the pod itself in a pod; {way}"
    if url.startswith("file://"):
        yield from _unmounted("store", url.removeprefix("file://"), base, writes=True)


def _paths(spec: Spec, base: Manifest) -> Iterator[str]:
    for key in ("model", "model_config_from", "vae", "data"):
        value = getattr(spec, key, None) or ""
        # The rule by which the job tells a hub id (jobs.data, jobs.pipelines).
        if value.startswith(("/", ".", "~")):
            yield from _unmounted(key, value, base, writes=False)


def _unmounted(key: str, path: str, base: Manifest, *, writes: bool) -> Iterator[str]:
    """Tell that a path of a pod is none of the volumes that outlive it."""
    if any(PurePosixPath(path).is_relative_to(mount) for mount in _lasting(base)):
        return
    if writes:
        yield f"{key} {path}: the base manifest mounts no volume there; all ends with the pod"
    else:
        yield (
            f"{key} {path}: the base manifest mounts no volume there, and a pod sees no folder of"
            f" this machine; `launcher push` it to the store, and give --{key} its s3:// address"
        )


def _lasting(base: Manifest) -> list[str]:
    """Return where the container sees volumes that were there before it."""
    pod, main = _pod(base)
    lasting = {row["name"] for row in pod.get("volumes") or () if "emptyDir" not in row}
    return [row["mountPath"] for row in main.get("volumeMounts") or () if row["name"] in lasting]


def _has_credentials(base: Manifest) -> bool:
    """Return whether the base itself brings variables of AWS, or of some Secret."""
    _, main = _pod(base)
    named = any(row["name"].startswith("AWS_") for row in main.get("env") or ())
    return named or any("secretRef" in row for row in main.get("envFrom") or ())


def _pod(base: Manifest) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the pod's spec and its main container."""
    from launcher.manifests import CONTAINER

    pod = base["spec"]["template"]["spec"]
    return pod, next(row for row in pod["containers"] if row["name"] == CONTAINER)


def _loopback(url: str) -> bool:
    import ipaddress

    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
