"""Owns what queues and gangs want to find on a Job: labels, annotations, suspension. Pure.

Existing engines only: Kueue (its concepts "workload" and "workload priority class"), Volcano
(pkg/controllers/podgroup) and MindCluster's build of it (its affinity scheduling interconnection).
Must not decide sizes and places (plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher import devices, names
from launcher.errors import Misconfigured
from launcher.settings import KUEUE, VOLCANO, Target

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
KUEUE_LIMIT = "kueue.x-k8s.io/max-exec-time-seconds"
VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"
VOLCANO_GANG = "scheduling.volcano.sh/group-min-member"
MINDCLUSTER_GANG = "huawei.com/schedule_minAvailable"
MINDCLUSTER_RING = "ring-controller.atlas"
API_GROUPS = {KUEUE: "kueue.x-k8s.io", VOLCANO: "scheduling.volcano.sh"}
_MARGIN_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Queueing:
    """What a run carries for its queue."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of Job and pods."""
    job_labels: Mapping[str, str] = field(default_factory=dict)
    """Of the Job alone: Kueue would take a labelled pod for a workload of its own."""
    job_annotations: Mapping[str, str] = field(default_factory=dict)
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    scheduler: str = ""
    suspended: bool = False
    """Whether the Job is created suspended, for Kueue to let it go."""
    deadline_seconds: int = 0
    """activeDeadlineSeconds of the Job; 0 means none."""


def engine(target: Target) -> str:
    """Return whose queue a run waits in: kueue, volcano, or empty for nobody's.

    Raises:
        Misconfigured: a queue is named, and not whose it is.
    """
    if target.queue_engine == KUEUE:
        return KUEUE if target.queue else ""
    if VOLCANO in (target.queue_engine, target.scheduler):
        return VOLCANO
    if target.queue:
        raise Misconfigured(
            f"queue {target.queue!r}: queue_engine is not set",
            'queue_engine = "kueue" or "volcano" in launcher.toml, LAUNCHER_QUEUE_ENGINE or'
            " --queue-engine",
        )
    return ""


def api_group(manifest: Mapping[str, Any]) -> str:
    """Return the API group of the engine that a Job waits for; empty for none."""
    if KUEUE_QUEUE in manifest["metadata"].get("labels", {}):
        return API_GROUPS[KUEUE]
    scheduler = manifest["spec"]["template"]["spec"].get("schedulerName")
    return API_GROUPS[VOLCANO] if scheduler == VOLCANO else ""


def places_whole(target: Target) -> bool:
    """Return whether a run over several nodes is placed whole or not at all.

    Kueue admits the whole Job at once; that its quota is there as nodes is its administrator's
    care. Volcano's gangs are placed together.
    """
    return engine(target) != "" or _by_volcano(target)


def queueing(target: Target, *, gang: int = 1, max_seconds: int = 0) -> Queueing:
    """Return what the Job of a run has to carry.

    Args:
        target: where it goes.
        gang: pods that are of use only together; 1 where each works for itself.
        max_seconds: how long the run may take; 0 means for ever.

    Raises:
        Misconfigured: queue, engine, priority, server or plugin cannot be what they are set to.
    """
    for key in ("queue", "priority_class", "workload_priority"):
        value = getattr(target, key)
        if value:  # it is a label's value, too
            names.check_object(value, key, longest=names.LONGEST)
    whose = engine(target)
    if whose == KUEUE:
        job_labels, deadline = _kueue(target, max_seconds), _before_kueue(max_seconds)
    else:
        job_labels, deadline = {}, max_seconds
    queue = {VOLCANO_QUEUE: target.queue} if whose == VOLCANO and target.queue else {}
    of_job, of_pods, labels = dict(queue), dict(queue), {}
    scheduler = target.scheduler
    if _by_volcano(target):
        scheduler = scheduler or VOLCANO
        if gang > 1:
            of_job[VOLCANO_GANG] = str(gang)  # read from the pods' owner
        if devices.plugin(target.plugin).selects_server:  # MindCluster's, and so its Volcano
            labels[MINDCLUSTER_RING] = devices.server(target.server).ring
            if gang > 1:
                of_pods[MINDCLUSTER_GANG] = str(gang)  # read from the pods themselves
    return Queueing(
        labels=labels,
        job_labels=job_labels,
        job_annotations=of_job,
        pod_annotations=of_pods,
        scheduler=scheduler,
        suspended=whose == KUEUE,
        deadline_seconds=deadline,
    )


def _by_volcano(target: Target) -> bool:
    """Return whether Volcano places the pods; it may do so for Kueue, too."""
    return VOLCANO in (target.queue_engine, target.scheduler)


def _kueue(target: Target, max_seconds: int) -> dict[str, str]:
    labels = {KUEUE_QUEUE: target.queue}
    if target.workload_priority:
        labels[KUEUE_PRIORITY] = target.workload_priority
    if max_seconds:
        labels[KUEUE_LIMIT] = str(max_seconds)
    return labels


def _before_kueue(max_seconds: int) -> int:
    """Return the Job's own deadline beside Kueue's.

    Neither clock runs while the Job waits suspended. The Job's begins anew at each resume
    (JobSpec.activeDeadlineSeconds); Kueue's adds up what a preempted run had before, and ends by
    suspending the Job for good. A run that was never preempted would meet both at once, so the
    Job's comes a little sooner: such a run fails with DeadlineExceeded, as it does everywhere.
    """
    return max_seconds - min(_MARGIN_SECONDS, max_seconds // 20)
