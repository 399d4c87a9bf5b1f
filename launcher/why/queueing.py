"""Owns why a queue keeps a run waiting: Kueue's Workload, Volcano's PodGroup. Pure.

Must not know of nodes. Sources: Kueue's conditions (kueue.sigs.k8s.io, Workload) and Volcano's
(volcano.sh, PodGroup); their messages are their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from launcher import fields, output
from launcher.fields import Object
from launcher.nodes import amount
from launcher.why import scheduling
from launcher.why.reasons import Reason

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_LATEST = datetime.max.replace(tzinfo=UTC)
# Kueue's words for: more than the queue has, even when it is empty.
_CAPACITY = re.compile(
    r"quota for (\S+) in flavor (\S+?),.* \((\d+)\) > maximum capacity \((\d+)\)"
)
_UNUSED = re.compile(r"insufficient unused quota for (\S+) in flavor (\S+?), (\S+) more needed")
_UNCOVERED = re.compile(r"resource (\S+) unavailable in ClusterQueue")
_ABSENT = re.compile(r"(LocalQueue|ClusterQueue) (\S+) (?:doesn't exist|is inactive|not found)")
# By the end of the reason: a Workload that is not tried again has a longer one.
_EVICTIONS = {
    "Preempted": "was preempted by a run of higher priority",
    "PodsReadyTimeout": "was taken out because its pods were not ready in time",
    "AdmissionCheck": "was taken out by an admission check",
    "ClusterQueueStopped": "was taken out because its queue was stopped",
    "LocalQueueStopped": "was taken out because its queue was stopped",
    "NodeFailures": "was taken out because a node failed",
    "MaximumExecutionTimeExceeded": "was taken out at its deadline",
}


def kueue(job: Object, workload: Object | None, others: Iterable[Object] = ()) -> Reason:
    """Return why a Job that Kueue has suspended waits.

    Args:
        job: the Job.
        workload: what stands for it in the queue; none if there is none yet.
        others: all Workloads of its namespace, for its position.
    """
    queue = fields.text(job, "metadata", "labels", QUEUE_LABEL)
    if workload is None:
        line = f"waits for Kueue to put it into queue {queue}"
        step = f"{fields.kubectl(job)} get localqueue {queue}: is it there, and does Kueue run?"
        return Reason(word="queue", line=line, next_step=step)
    queue = fields.text(workload, "spec", "queueName") or queue
    name = fields.name(workload)
    if fields.of(workload, "spec", "active") is False:
        return _stopped(workload, name)
    reserved = fields.condition(workload, "QuotaReserved")
    if fields.text(reserved, "status") == "True":
        return _checks(workload, queue)
    message = fields.text(reserved, "message")
    if refused := _refused(message, workload):
        return refused
    past = _evicted(workload)
    line = f"{past + '; ' if past else ''}waits in queue {queue}{position(workload, others)}"
    if found := _UNUSED.search(message):
        needed = scheduling.shown(found[1], amount(found[1], found[3]))
        line += f": {needed} of flavor {found[2]} have to become free"
    elif message:
        line += f": {message}"
    step = "wait: it starts by itself when the queue has room"
    return Reason(word="queue", line=line, next_step=step)


def without_kueue(job: Object) -> Reason:
    """Return what a Job waits for that was put into a queue of an engine that is not there."""
    queue = fields.text(job, "metadata", "labels", QUEUE_LABEL)
    line = f"waits for Kueue's queue {queue}, and this cluster has no Kueue"
    step = f"install Kueue; or `launcher cancel {fields.name(job)}`, and submit without --queue"
    return Reason(word="no-kueue", line=line, next_step=step, stuck=True)


def position(workload: Object, others: Iterable[Object]) -> str:
    """Return `, 2nd of 5` for a Workload among the waiting ones of its queue; empty if unknown."""
    queue = fields.text(workload, "spec", "queueName")
    waiting = sorted((row for row in others if _waits(row, queue)), key=_order)
    names = [fields.name(row) for row in waiting]
    if fields.name(workload) not in names:
        return ""
    return f", {_ordinal(names.index(fields.name(workload)) + 1)} of {len(names)}"


def volcano(group: Object) -> Reason | None:
    """Return why Volcano does not place a run's pods; None if the group does not say."""
    phase = fields.text(group, "status", "phase")
    if phase not in ("", "Pending", "Inqueue", "Unknown"):
        return None
    queue = fields.text(group, "spec", "queue") or "default"
    members = fields.number(group, "spec", "minMember")
    found = fields.condition(group, "Unschedulable", "True")
    message = fields.text(found, "message")
    gang = f" for {output.counted(members, 'pod')} at once" if members else ""
    if phase == "Pending" and not message:
        line = f"waits in Volcano's queue {queue}{gang}: the queue has not let it in"
        step = f"wait; kubectl get queue {queue} -o yaml shows what the queue has given away"
        return Reason(word="queue", line=line, next_step=step)
    if not message:
        return None
    line = f"waits in Volcano's queue {queue}{gang}: {message}"
    step = "wait: they are placed when all of them fit"
    return Reason(word="gang", line=line, next_step=step)


def _stopped(workload: Object, name: str) -> Reason:
    past = _evicted(workload)
    line = (
        f"{past}, and is not tried again" if past else "was stopped: it is taken out of its queue"
    )
    patch = '{"spec":{"active":true}}'
    kubectl = fields.kubectl(workload)
    step = f"it goes on with: {kubectl} patch workload {name} --type merge -p '{patch}'"
    return Reason(word="stopped", line=line, next_step=step, stuck=True)


def _checks(workload: Object, queue: str) -> Reason:
    pending = [
        f"{fields.text(row, 'name')}: {fields.text(row, 'message') or fields.text(row, 'state')}"
        for row in fields.rows(workload, "status", "admissionChecks")
        if row.get("state") != "Ready"
    ]
    if pending:
        line = f"has its quota in queue {queue} and waits for a check: {'; '.join(pending)}"
        return Reason(word="queue", line=line, next_step="wait, or ask who runs the queue")
    line = f"is admitted by queue {queue} and about to start"
    return Reason(word="queue", line=line)


def _refused(message: str, workload: Object) -> Reason | None:
    """Return what never passes by itself."""
    queue = fields.text(workload, "spec", "queueName")
    if found := _CAPACITY.search(message):
        asked = scheduling.shown(found[1], amount(found[1], found[3]))
        line = f"can never fit: asks {asked}, and queue {queue} has {found[4]} in all"
        line += f" (flavor {found[2]})"
        step = "cancel it and submit again with fewer --npus or --nodes, or ask for more quota"
        return Reason(word="quota", line=line, next_step=step, stuck=True)
    if found := _UNCOVERED.search(message):
        line = f"can never fit: queue {queue} has no quota at all for {found[1]}"
        step = f"ask who runs the queue to add {found[1]} to its coveredResources"
        return Reason(word="quota", line=line, next_step=step, stuck=True)
    if found := _ABSENT.search(message):
        line = f"is not let in: {message}"
        step = f"{fields.kubectl(workload)} get {found[1].lower()} {found[2]}; choose another"
        step += " --queue, or have it opened"
        return Reason(word="no-queue", line=line, next_step=step, stuck=True)
    if "didn't match" in message or "doesn't match" in message or "untolerated taint" in message:
        line = f"is not let into queue {queue}: {message}"
        step = "its node labels fit no flavor of the queue: choose another --server or --queue"
        return Reason(word="no-flavor", line=line, next_step=step, stuck=True)
    return None


def _evicted(workload: Object) -> str:
    found = fields.condition(workload, "Evicted", "True")
    if found is None:
        return ""
    reason = fields.text(found, "reason")
    if reason in ("Deactivated", "InactiveWorkload"):
        return ""  # by hand: there is no more to say
    known = [told for key, told in _EVICTIONS.items() if reason.endswith(key)]
    return known[0] if known else f"was taken out: {fields.text(found, 'message') or reason}"


def _waits(row: Object, queue: str) -> bool:
    return (
        fields.text(row, "spec", "queueName") == queue
        and fields.of(row, "spec", "active") is not False
        and not fields.condition(row, "QuotaReserved", "True")
        and not fields.condition(row, "Finished", "True")
    )


def _order(row: Object) -> tuple[int, datetime, str]:
    """Return what Kueue sorts by: priority, then the time of its creation or eviction."""
    evicted = fields.at(fields.condition(row, "Evicted", "True"), "lastTransitionTime")
    since = evicted or fields.at(row, "metadata", "creationTimestamp") or _LATEST
    return -(fields.number(row, "spec", "priority") or 0), since, fields.name(row)


def _ordinal(count: int) -> str:
    ending = "th" if 10 <= count % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"
