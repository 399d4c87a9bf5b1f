"""Owns what the scheduler's own message means, where nothing is known of the nodes. Pure.

Must not look at nodes. The message is a summary by the scheduler's framework: `0/5 nodes are
available: 3 Insufficient X, 2 node(s) had ...`, then what preemption would do.
"""

from __future__ import annotations

import re

from launcher import output
from launcher.why.reasons import Reason
from launcher.why.scheduling import NEVER

_SUMMARY = re.compile(
    r"0/(\d+) nodes are (?:un)?available: (.*?)(?:(?:\. [^.]*)?\s*preemption: (.*))?$"
)
_PART = re.compile(r"(\d+) (.+?)(?=, \d+ |\.*$)")
# In this order; the first that matches. Each completes `of 5 nodes: 3 ...`.
_WORDS = (
    (r"Insufficient (\S+)", "with too little {}"),
    (r"Too many pods", "full of pods"),
    (r".*affinity/selector", "without a label that it asks for"),
    (r".*untolerated taint\(?s?\)? *\{([^:}]+): ?([^}]*)\}", "tainted {}"),
    (r".*untolerated taint", "with a taint that it does not tolerate"),
    (r"node\(s\) were unschedulable", "cordoned"),
    (r".*pod anti-affinity", "with a pod that it keeps away from"),
    (r".*free ports", "where its port is in use"),
)
# What may pass by itself; a taint that is not named may be the one of a node that is not ready.
_PASSING = re.compile(r"node\.kubernetes\.io/|node\(s\) were unschedulable|untolerated taint\(s\)$")
_NOT_HELPFUL = "Preemption is not helpful for scheduling"
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_FACTS = "with the rights of k8s/components/node-facts this line names nodes and reasons"


def meaning(message: str, what: str) -> Reason:
    """Return what the scheduler's message says.

    Args:
        message: of the condition PodScheduled, or of a FailedScheduling event.
        what: the pod asks for, such as `8 NPUs`.
    """
    if volume := about_volume(message):
        return volume
    summary = _SUMMARY.search(message)
    if not summary:
        return Reason(word="unplaced", line=f"no node takes it: {message}")
    total, parts = int(summary[1]), _PART.findall(summary[2])
    if not total:
        step = "ask the administrator"
        line = f"{NEVER}: the cluster has no node"
        return Reason(word="no-room", line=line, next_step=step, stuck=True)
    nodes = f"of {output.counted(total, 'node')}"
    told = ", ".join(f"{count} {_said(reason)}" for count, reason in parts) or summary[2]
    # Nodes that no preemption would help could not hold it even if they were empty.
    hopeless = sum(int(n) for n, why in _PART.findall(summary[3] or "") if _NOT_HELPFUL in why)
    passing = sum(int(n) for n, why in parts if _PASSING.search(why))
    if hopeless < total:
        line = f"waits for {what}: {nodes} {told}"
        return Reason(word="no-room", line=line, next_step=f"wait; {_FACTS}")
    if passing:
        line = f"waits for {what}: no node that works could hold it even if empty: {nodes} {told}"
        return Reason(word="nodes-away", line=line, next_step=_FACTS)
    line = f"{NEVER}: asks {what}, and no node could hold it even if empty: {nodes} {told}"
    return Reason(word="never", line=line, next_step=_FACTS, stuck=True)


def about_volume(message: str) -> Reason | None:
    """Return that a volume is what keeps a pod from every node, if the scheduler says so."""
    if found := _CLAIM.search(message):
        line = f"its PersistentVolumeClaim {found[1]} does not exist"
        return Reason(word="volume", line=line, next_step="create it, or edit the base", stuck=True)
    if "unbound immediate PersistentVolumeClaims" in message:
        line = "its PersistentVolumeClaim is not bound to a volume"
        step = "kubectl get pvc; is there a storage class that makes volumes?"
        return Reason(word="volume", line=line, next_step=step)
    return None


def _said(reason: str) -> str:
    for pattern, words in _WORDS:
        if found := re.match(pattern, reason):
            groups = [group for group in found.groups() if group]
            return words.format("=".join(groups))
    return reason.removeprefix("node(s) ")
