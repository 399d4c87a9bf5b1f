"""Owns the shape of what a cluster says of one run: plain API objects, fetched together.

Must not fetch, and must not interpret: backends/kubernetes.py fills it, explain.py reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.nodes import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a cluster says of one run, as plain API objects."""

    job: Mapping[str, Any]
    pods: tuple[Mapping[str, Any], ...] = ()
    """Pods of all attempts that are still there, oldest first."""
    events: tuple[Mapping[str, Any], ...] = ()
    """Events (core/v1) of the Job, its pods, its Workload and PodGroup, oldest first."""
    workload: Mapping[str, Any] | None = None
    """The Workload (kueue.x-k8s.io) that stands for the Job in a queue of Kueue."""
    no_kueue: bool = False
    """Whether the Job is in a queue of Kueue, and the cluster has no Kueue."""
    queue: tuple[Mapping[str, Any], ...] = ()
    """Workloads of the namespace that wait, for the position of one that does; empty: not known."""
    pod_group: Mapping[str, Any] | None = None
    """The PodGroup (scheduling.volcano.sh) that Volcano places the pods by."""
    nodes: tuple[Node, ...] | None = None
    """Facts of the nodes; None: this user may not read them, or nothing asked for them."""
    now: datetime
    """When this was fetched, UTC."""
