"""Owns every decision about a run: (spec, Target, name, NPUs) -> JobPlan. Pure.

Must not read files, clocks or the machine: what it needs of them is an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.access import Access
from launcher import devices, limits, names, queues, sizes
from launcher.errors import Usage
from launcher.settings import Target

if TYPE_CHECKING:  # brings pydantic, which a backend that only wants JobPlan does without
    from jobs.specs import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """All that a backend needs; plain values only, so that a plan prints and compares."""

    name: str
    kind: str
    """`train` or `infer`: which base manifest, which worker program."""
    namespace: str
    image: str
    npus: int
    """NPUs, and so msrun workers, per node."""
    nodes: int
    resource: str
    """Extended resource of the NPUs."""
    environment: Mapping[str, str]
    """Environment of the job's supervisor: JOB_SPEC, JOB_RUN, ... (see jobs.runtime)."""
    labels: Mapping[str, str]
    """Of Job and pods."""
    annotations: Mapping[str, str]
    """Of Job and pods."""
    job_labels: Mapping[str, str]
    """Of the Job alone."""
    job_annotations: Mapping[str, str]
    """Of the Job alone."""
    pod_annotations: Mapping[str, str]
    """Of the pods alone."""
    node_selector: Mapping[str, str]
    environment_secrets: tuple[str, ...]
    """Secrets whose keys become environment variables."""
    image_pull_secrets: tuple[str, ...]
    scheduler: str
    service_account: str
    priority_class: str
    cpu: int
    """Cores requested."""
    memory_gib: int
    """Memory requested and limited, GiB."""
    shm_gib: int
    """Size of /dev/shm, GiB; counts towards the memory."""
    disk_gib: int
    """Ephemeral storage requested, GiB."""
    most_disk_gib: int
    """Its limit, GiB: a pod that takes more is evicted, before it fills its node."""
    grace_seconds: int
    """terminationGracePeriodSeconds: time to write and upload the whole state."""
    retries: int
    ttl_seconds: int
    deadline_seconds: int
    """activeDeadlineSeconds of the Job; 0 means none."""
    suspended: bool
    """Whether the Job is created suspended, for its queue to let it go."""
    subdomain: str
    """Headless Service that gives the pods names; empty where they need not find each other."""
    graphs: tuple[str, ...]
    """What each worker compiles where the cache has nothing; told, not rendered."""
    node_file: str
    """File of the node beside the driver's, mounted where the base mounts the driver."""


SPEC_DIGEST = "launcher/spec-sha256"
"""Annotation with the digest of JOB_SPEC: the same name with another spec is another run."""
APPLICATION = "ascend-diffusion-jobs"
SUBDOMAIN = "peers"
"""The headless Service of k8s/base."""
MASTER_PORT = 8118
"""msrun's own default; each pod has its own address, so that no two runs share it."""
HCCL_SECONDS = (120, 7200)
"""Least and most of HCCL_CONNECT_TIMEOUT (CANN 8.0, environment variables)."""
HCCN_FILE = "/etc/hccn.conf"
"""Addresses of the node's RoCE interfaces, which HCCL speaks over several nodes by."""


def plan(
    spec: Spec,
    target: Target,
    *,
    name: str,
    npus: int,
    nodes: int = 1,
    cores: int = 0,
    max_seconds: int = 0,
    ttl_seconds: int | None = None,
    shapes: Mapping[sizes.Shape, int] | None = None,
) -> JobPlan:
    """Decide everything about a run.

    Args:
        spec: what to do.
        target: where, and how big.
        name: the run's name.
        npus: NPUs, and so workers, per node.
        nodes: pods of the run.
        cores: CPU cores of this machine; the local backend shares them out to the workers.
        max_seconds: how long the run may take; 0 means for ever.
        ttl_seconds: how long the finished Job stays; none means as long as the target says.
        shapes: of the prompts that wait in the store; see sizes.picture_bytes.

    Raises:
        Usage: the name, the number of NPUs or nodes, a limit or the precision cannot be had there.
        Misconfigured: image, store, server, plugin, queue or memory of the target, or the spec's
            size.
    """
    names.check(name, nodes)
    gang = nodes if spec.kind == "train" else 1
    if target.backend == "local":
        _check_local(spec, target, npus, nodes, cores, (max_seconds, ttl_seconds))
        queueing = queues.Queueing()
    else:
        _check_cluster(spec, target, npus, nodes)
        queueing = queues.queueing(target, gang=gang, max_seconds=max_seconds)
    ttl = target.ttl_hours * 3600 if ttl_seconds is None else ttl_seconds
    disk = sizes.disk_gib(spec, npus, data_gib=target.data_gib, shapes=shapes)
    return _decided(spec, target, name, (npus, nodes, cores), (ttl, disk), queueing)


def _decided(
    spec: Spec,
    target: Target,
    name: str,
    counts: tuple[int, int, int],
    bounds: tuple[int, int],
    queueing: queues.Queueing,
) -> JobPlan:
    from jobs.specs import graphs, to_json

    npus, nodes, cores = counts
    ttl_seconds, disk = bounds
    server, plugin = devices.server(target.server), devices.plugin(target.plugin)
    world = nodes > 1 and spec.kind == "train"
    spec_json = to_json(spec)
    limits.check_size(spec_json)
    grace = grace_seconds(spec, target)
    return JobPlan(
        name=name,
        kind=spec.kind,
        namespace=target.namespace,
        image=target.image,
        npus=npus,
        nodes=nodes,
        resource=target.resource or devices.resource(plugin, server),
        environment=_environment(spec_json, target, name, npus, nodes, grace)
        | (_threads(spec, target, npus, cores) if target.backend == "local" else _patience(target))
        | (_rendezvous(name, target) if world else {}),
        labels={
            "app.kubernetes.io/managed-by": "launcher",
            "app.kubernetes.io/name": APPLICATION,
            "app.kubernetes.io/component": spec.kind,
            **queueing.labels,
        },
        annotations={SPEC_DIGEST: hashlib.sha256(spec_json.encode()).hexdigest()},
        job_labels=queueing.job_labels,
        job_annotations=queueing.job_annotations,
        pod_annotations=queueing.pod_annotations,
        node_selector=devices.node_selector(plugin, server),
        environment_secrets=_given(target.store_secret, target.hub_secret),
        image_pull_secrets=_given(target.image_pull_secret),
        scheduler=queueing.scheduler,
        service_account=target.service_account,
        priority_class=target.priority_class,
        cpu=target.cpu_per_npu * npus,
        memory_gib=target.memory_per_npu_gib * npus,
        shm_gib=sizes.shm_gib(npus),
        disk_gib=disk,
        most_disk_gib=sizes.SPARE_DISK * disk,
        grace_seconds=grace,
        retries=target.retries,
        ttl_seconds=ttl_seconds,
        deadline_seconds=queueing.deadline_seconds,
        suspended=queueing.suspended,
        subdomain=SUBDOMAIN if world else "",
        graphs=graphs(spec) if spec.kind == "train" else (),
        node_file=HCCN_FILE if world else "",
    )


def _check_local(
    spec: Spec,
    target: Target,
    npus: int,
    nodes: int,
    cores: int,
    limit: tuple[int, int | None],
) -> None:
    limits.check_local(spec, target, npus, nodes, cores)
    if limit != (0, None):
        flag = "--max-duration" if limit[0] else "--ttl"
        raise Usage(f"{flag}: no cluster keeps time for a local run", f"leave {flag} out")


def _check_cluster(spec: Spec, target: Target, npus: int, nodes: int) -> None:
    limits.check_places(target)
    devices.check_npus(devices.server(target.server), npus, nodes, world=spec.kind == "train")
    limits.check_memory(spec, target, npus)


def _environment(
    spec_json: str, target: Target, name: str, npus: int, nodes: int, grace: int
) -> dict[str, str]:
    """Return what the supervisor reads; the rest of its environment stands in the base."""
    rows = {
        "JOB_SPEC": spec_json,
        "JOB_RUN": name,
        "JOB_STORE": target.store,
        "JOB_WORKERS": str(npus),
        "JOB_NODES": str(nodes),
        "JOB_DEVICE": "CPU" if target.backend == "local" else "Ascend",
        "JOB_STALL_SECONDS": str(target.stall_minutes * 60),
        "JOB_STORE_DEADLINE_SECONDS": str(target.store_deadline_minutes * 60),
        "JOB_GRACE_SECONDS": str(grace),
    }
    if target.hub_endpoint:
        rows["HF_ENDPOINT"] = target.hub_endpoint
    access = Access(
        endpoint=target.store_endpoint,
        region=target.store_region,
        addressing=target.store_addressing,
        checksum=target.store_checksum,
    )
    return rows | access.variables()


def _threads(spec: Spec, target: Target, npus: int, cores: int) -> dict[str, str]:
    """Return how this machine's cores are shared out.

    A picture's bits depend on it, and shall not on the number of workers: who wants more of the
    machine's cores for painting takes more workers.
    """
    share = max(1, cores // npus) if spec.kind == "train" else 1
    return {"JOB_THREADS": str(target.threads or share)}


def _patience(target: Target) -> dict[str, str]:
    """Return how long HCCL waits for the other ranks, which may still compile: 40 minutes of 45.

    Shorter than the stall limit, so that HCCL's own error is what one reads. HCCL's least is longer
    than a limit below three minutes.
    """
    least, most = HCCL_SECONDS
    seconds = str(min(max(target.stall_minutes * 60 * 8 // 9, least), most))
    return {"HCCL_CONNECT_TIMEOUT": seconds, "HCCL_EXEC_TIMEOUT": seconds}


def _rendezvous(name: str, target: Target) -> dict[str, str]:
    """Return how the pods of one world find each other: pod 0 by its name, and until when."""
    return {
        "JOB_MASTER": f"{name}-0.{SUBDOMAIN}",
        "JOB_MASTER_PORT": str(MASTER_PORT),
        "JOB_RENDEZVOUS_SECONDS": str(target.rendezvous_minutes * 60),
    }


def grace_seconds(spec: Spec, target: Target) -> int:
    """Return how long a pod that is told to stop may take there."""
    need = sizes.grace_seconds(spec, target.upload_mib_per_second)
    most = 0 if target.backend == "local" else target.max_grace_seconds
    return min(need, most or need)


def _given(*names: str) -> tuple[str, ...]:
    """Return the names that are set, each once: one Secret may serve two purposes."""
    return tuple(dict.fromkeys(name for name in names if name))
