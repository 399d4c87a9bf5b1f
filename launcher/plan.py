"""Owns every decision about a run: (spec, Target, name, NPUs) -> JobPlan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    """Ephemeral storage requested and limited, GiB."""
    grace_seconds: int
    """terminationGracePeriodSeconds: time to write and upload the whole state."""
    retries: int
    ttl_seconds: int
