"""Owns where a run goes: launcher.toml, LAUNCHER_* and flags -> Target, with provenance.

Must not hold a hyper-parameter (those are the spec's) nor a credential (those are boto3's chain
or a Kubernetes Secret).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how big; every value has a default, none is a hyper-parameter."""

    backend: str = "kubernetes"
    """`kubernetes`, or `local`: the container's own programs as processes on this machine's CPU."""
    context: str = ""
    """Context of the kubeconfig; empty means its current one."""
    namespace: str = ""
    """Namespace of the Jobs; empty means the context's own."""
    image: str = ""
    """Image of the jobs, with tag or digest."""
    image_pull_secret: str = ""
    """Secret of type kubernetes.io/dockerconfigjson for the image's registry."""
    store: str = ""
    """Root of the object store: s3://bucket/prefix, file:///path or a path."""
    store_secret: str = ""
    """Secret whose keys (AWS_ACCESS_KEY_ID, ...) become the job's environment."""
    hub_secret: str = ""
    """Secret whose keys (HF_TOKEN, HF_ENDPOINT) become the job's environment."""
    hub_endpoint: str = ""
    """HF_ENDPOINT of the job: a mirror of the model and data hub."""
    server: str = "module-910b-8"
    """Server type, the node label `accelerator-type`; decides the legal NPU counts."""
    plugin: str = "mindcluster"
    """Device plugin: mindcluster, cce or hami; decides the name of the NPU resource."""
    resource: str = ""
    """Name of the NPU resource; empty means the plugin's own."""
    scheduler: str = ""
    """schedulerName of the pods; empty means the cluster's default."""
    service_account: str = ""
    """Service account of the pods; empty means the namespace's default, never its token."""
    priority_class: str = ""
    """PriorityClass of the pods."""
    cpu_per_npu: int = 16
    """CPU cores requested per NPU."""
    memory_per_npu_gib: int = 64
    """Memory requested per NPU in GiB; the shared memory is taken from it."""
    retries: int = 3
    """Counted retries per pod index; free retries (exit 75, disruptions) are not counted."""
    ttl_hours: int = 168
    """Hours a finished Job stays in the cluster; results stay in the store."""
    stall_minutes: int = 45
    """A worker silent for longer is killed; graph compilation is silent for up to 30."""
    store_deadline_minutes: int = 30
    """How long an unreachable store is retried before the job gives up with 69."""
    upload_mib_per_second: int = 100
    """Rate to the store that the grace period of a pod is computed with."""
    threads: int = 0
    """Local backend: CPU threads per worker; 0 means the machine's cores over the workers."""
