"""Owns every decision about a run: (spec, Target, name, NPUs) -> JobPlan. Pure.

Must not read files, clocks or the machine: what it needs of them is an argument.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.access import Access
from launcher import devices, names, output, sizes
from launcher.errors import Misconfigured, Usage
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
    annotations: Mapping[str, str]
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
    """Ephemeral storage requested, GiB; no limit, since nobody knows the data set's size here."""
    grace_seconds: int
    """terminationGracePeriodSeconds: time to write and upload the whole state."""
    retries: int
    ttl_seconds: int


SPEC_BYTES = 100 * 1024
"""Largest JOB_SPEC: Linux limits one string of the environment to 128 KiB (MAX_ARG_STRLEN)."""
SPEC_DIGEST = "launcher/spec-sha256"
"""Annotation with the digest of JOB_SPEC: the same name with another spec is another run."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Grammar of the distribution project's reference package: host, path, tag, digest.
_IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]+)?"
)
APPLICATION = "ascend-diffusion-jobs"


def plan(
    spec: Spec, target: Target, *, name: str, npus: int, nodes: int = 1, cores: int = 0
) -> JobPlan:
    """Decide everything about a run.

    Args:
        spec: what to do.
        target: where, and how big.
        name: the run's name.
        npus: NPUs, and so workers, per node.
        nodes: pods of the run.
        cores: CPU cores of this machine; the local backend shares them out to the workers.

    Raises:
        Usage: the name, the number of NPUs or nodes, or the precision cannot be had there.
        Misconfigured: image, store, server, plugin or memory of the target, or the spec's size.
    """
    from jobs.specs import to_json

    names.check(name, nodes)
    local = target.backend == "local"
    server = devices.server(target.server)
    plugin = devices.plugin(target.plugin)
    if local:
        _check_local(spec, target, npus, nodes, cores)
    else:
        _check_cluster(spec, target, server, npus, nodes)
    spec_json = to_json(spec)
    _check_size(spec_json)
    grace = _grace(spec, target)
    threads = {"JOB_THREADS": str(target.threads or max(1, cores // npus))} if local else {}
    return JobPlan(
        name=name,
        kind=spec.kind,
        namespace=target.namespace,
        image=target.image,
        npus=npus,
        nodes=nodes,
        resource=target.resource or devices.resource(plugin, server),
        environment=_environment(spec_json, target, name, npus, nodes, grace) | threads,
        labels={
            "app.kubernetes.io/managed-by": "launcher",
            "app.kubernetes.io/name": APPLICATION,
            "app.kubernetes.io/component": spec.kind,
        },
        annotations={SPEC_DIGEST: hashlib.sha256(spec_json.encode()).hexdigest()},
        node_selector=devices.node_selector(plugin, server),
        environment_secrets=_given(target.store_secret, target.hub_secret),
        image_pull_secrets=_given(target.image_pull_secret),
        scheduler=target.scheduler,
        service_account=target.service_account,
        priority_class=target.priority_class,
        cpu=target.cpu_per_npu * npus,
        memory_gib=target.memory_per_npu_gib * npus,
        shm_gib=sizes.shm_gib(npus),
        disk_gib=sizes.disk_gib(spec, npus),
        grace_seconds=grace,
        retries=target.retries,
        ttl_seconds=target.ttl_hours * 3600,
    )


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


def short_grace(spec: Spec, target: Target) -> str:
    """Return a warning if the grace that the cluster keeps is too short; empty if it is not."""
    need, most = _needed(spec, target), target.max_grace_seconds
    if _grace(spec, target) >= need:
        return ""
    state, rate = sizes.state_bytes(spec), target.upload_mib_per_second
    if not state:
        return (
            f"max_grace_seconds {most}: a stopped pod needs {need} s to end and upload its"
            " pictures, and may have to paint the last ones again"
        )
    rest = most - sizes.grace_seconds(spec, sys.maxsize)  # what is left for the upload
    enough = f", a store of {-(-state // sizes.MIB // rest)} MiB/s nothing" if rest > 0 else ""
    return (
        f"max_grace_seconds {most}: a stopped pod needs {need} s to save and upload"
        f" {output.size(state)} at {rate} MiB/s, so that a stop may cost all since the last"
        f" checkpoint; a smaller save_every costs less{enough}"
    )


def _needed(spec: Spec, target: Target) -> int:
    return sizes.grace_seconds(spec, target.upload_mib_per_second)


def _grace(spec: Spec, target: Target) -> int:
    most = 0 if target.backend == "local" else target.max_grace_seconds
    return min(_needed(spec, target), most or sys.maxsize)


def _given(*names: str) -> tuple[str, ...]:
    """Return the names that are set, each once: one Secret may serve two purposes."""
    return tuple(dict.fromkeys(name for name in names if name))


def _check_local(spec: Spec, target: Target, npus: int, nodes: int, cores: int) -> None:
    _check_bucket(target.store)
    if nodes != 1:
        raise Usage(f"--nodes {nodes}: the local backend is one node", "--nodes 1")
    if npus < 1:
        raise Usage(f"--npus {npus}: a run needs a worker", "--npus 1")
    most = max(8, cores)
    if npus > most:
        # Each worker is a process of about 2 GB; a slip of the finger should not cost a laptop.
        raise Usage(f"--npus {npus}: more workers than this machine can run", f"--npus {most}")
    if spec.precision == "bf16":
        raise Usage(
            "--precision bf16: MindSpore has no bfloat16 on a CPU", "--precision fp32, or fp16"
        )


def _check_cluster(
    spec: Spec, target: Target, server: devices.Server, npus: int, nodes: int
) -> None:
    _check_places(target)
    devices.check_npus(server, npus, nodes)
    if nodes > 1:
        raise Usage(f"--nodes {nodes}: this version runs on one node", "--nodes 1")
    _check_memory(spec, target, npus)


def _check_places(target: Target) -> None:
    _check_bucket(target.store)
    for key, what in (("image", "the image of the jobs"), ("store", "the object store")):
        if not getattr(target, key):
            raise Misconfigured(
                f"{key}: {what} is not set",
                f"{key} in launcher.toml, LAUNCHER_{key.upper()} or --{key}",
            )
    if not _IMAGE.fullmatch(target.image):
        raise Misconfigured(
            f"image {target.image!r}: is no name of an image",
            "registry/name in lower case, with tag or digest: registry/name:tag",
        )
    scheme, separator, rest = target.store.partition("://")
    if not separator or scheme not in ("s3", "file") or (scheme == "file" and rest[:1] != "/"):
        raise Misconfigured(
            f"store {target.store!r}: a pod has no such place",
            "s3://bucket/prefix, or file:///path of a volume that the base manifest mounts",
        )


def _check_bucket(store: str) -> None:
    scheme, _, rest = store.partition("://")
    if scheme == "s3" and not _BUCKET.fullmatch(rest.partition("/")[0]):
        raise Misconfigured(f"store {store!r}: names no bucket", "s3://bucket/prefix")


def _check_memory(spec: Spec, target: Target, npus: int) -> None:
    given, need = target.memory_per_npu_gib * npus, sizes.memory_gib(spec, npus)
    if given < need:
        raise Misconfigured(
            f"memory_per_npu_gib {target.memory_per_npu_gib}: {given} GiB for {npus} NPUs, and this"
            f" run needs {need}",
            f"memory_per_npu_gib = {-(-need // npus)}",
        )


def _check_size(spec_json: str) -> None:
    size = len(spec_json.encode())
    if size > SPEC_BYTES:
        raise Misconfigured(
            f"spec: {size // 1024} KiB as JSON, and a pod's environment takes {SPEC_BYTES // 1024}",
            "split the prompt file into several runs",
        )
