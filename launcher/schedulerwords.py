"""Owns what the scheduler's own message means, where nothing is known of the nodes. Pure.

Must not look at nodes. The message is a summary by the scheduler's framework: `0/5 nodes are
available: 3 Insufficient X, 2 node(s) had ...`, then what preemption would do.
"""

from __future__ import annotations

import re

from launcher import output
from launcher.reasons import Reason
from launcher.scheduling import NEVER

_SUMMARY = re.compile(r"0/(\d+) nodes are (?:un)?available: (.*?)(?:\s*preemption: (.*))?$")
_PART = re.compile(r"(\d+) (.+?)(?=, \d+ |\.*$)")
# In this order; the first that matches. Each completes `of 5 nodes 3 ...`.
_WORDS = (
    (r"Insufficient (\S+)", "have too little of {} free"),
    (r"Too many pods", "are full of pods"),
    (r".*affinity/selector", "lack a label that it asks for"),
    (r".*untolerated taint\(?s?\)? *\{([^:}]+): ?([^}]*)\}", "are tainted {}"),
    (r".*untolerated taint", "have a taint that it does not tolerate"),
    (r"node\(s\) were unschedulable", "are cordoned"),
    (r".*pod anti-affinity", "already have a pod that it keeps away from"),
    (r".*free ports", "have its port in use"),
)
_PASSING = re.compile(r"node\.kubernetes\.io/|node\(s\) were unschedulable")
_NOT_HELPFUL = "Preemption is not helpful for scheduling"
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')


def meaning(message: str, what: str) -> Reason:
    """Return what the scheduler's message says.

    Args:
        message: of the condition PodScheduled, or of a FailedScheduling event.
        what: the pod asks for, such as `8 NPUs`.
    """
    step = "with the rights of k8s/components/node-facts this line names the nodes"
    if found := _CLAIM.search(message):
        line = f"its volume claim {found[1]!r} does not exist".replace("'", '"')
        return Reason(word="volume", line=line, next_step="create it, or edit the base", stuck=True)
    summary = _SUMMARY.search(message)
    if not summary:
        return Reason(word="unplaced", line=f"no node takes it: {message}", next_step="")
    total, parts = int(summary[1]), _PART.findall(summary[2])
    if not total:
        line = f"{NEVER}: the cluster has no node"
        return Reason(word="no-room", line=line, next_step="ask its administrator", stuck=True)
    told = ", ".join(f"{count} {_said(reason)}" for count, reason in parts) or summary[2]
    hopeless = sum(
        int(count) for count, reason in _PART.findall(summary[3] or "") if _NOT_HELPFUL in reason
    )
    # Nodes that no preemption would help are those it could not run on if they were empty.
    if hopeless == total and not any(_PASSING.search(reason) for _, reason in parts):
        line = (
            f"{NEVER}: asks {what}, and even if empty none of {_nodes(total)} could hold it: {told}"
        )
        return Reason(word="never", line=line, next_step=step, stuck=True)
    line = f"waits for {what}: of {_nodes(total)} {told}"
    return Reason(word="no-room", line=line, next_step=f"wait; {step}")


def _nodes(total: int) -> str:
    return output.counted(total, "node")


def _said(reason: str) -> str:
    for pattern, words in _WORDS:
        if found := re.match(pattern, reason):
            groups = [group for group in found.groups() if group]
            return words.format("=".join(groups))
    return reason.removeprefix("node(s) ")
