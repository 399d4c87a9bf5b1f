"""Owns how an attempt ended: its exit code, its own words, or who ended it. Pure.

Must not judge pods that live. Sources: the codes of jobs/errors.py; the reasons of the condition
DisruptionTarget (kubernetes.io, Pod disruption conditions) and of the kubelet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from jobs.errors import BY_CODE, Retry
from launcher import fields
from launcher.fields import Object

_OURS = re.compile(r"(\d+) (?:[a-z ]+: )?(.*)")
_LONGEST = 300
# The kubelet's words of a limit of its own disk (pkg/kubelet/eviction: helpers.go).
_DISK = re.compile(r"ephemeral (local )?storage (usage exceeds the total )?limit|EmptyDir volume")
_DISRUPTIONS = {
    "PreemptionByScheduler": ("preempted", "preempted by a run of higher priority"),
    "PreemptionByKubeScheduler": ("preempted", "preempted by a run of higher priority"),
    "EvictionByEvictionAPI": ("evicted", "evicted from {node}, as when it is drained"),
    "DeletionByTaintManager": ("evicted", "taken off {node}, which is tainted NoExecute"),
    "DeletionByPodGC": ("node-gone", "lost with {node}, which is gone"),
    "TerminationByKubelet": ("evicted", "evicted by {node}"),
}
_SIGNALS = {134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 139: "SIGSEGV", 143: "SIGTERM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one pod ended."""

    word: str
    """`exit`, `memory`, `disk`, `deadline`, `evicted`, `preempted`, `node-gone`,
    `refused-by-node` or `unknown`."""
    line: str
    """Completes `it was` or `it`: `failed (69, unavailable): the store ...`."""
    code: int | None = None
    retry: Retry = "counted"
    """What Kubernetes makes of it: see jobs/errors.py."""
    finished: datetime | None = None


def ending(pod: Object) -> Ending | None:
    """Return how a pod ended; None if it has not."""
    phase, ended = fields.text(pod, "status", "phase"), fields.ended(pod)
    if phase not in ("Succeeded", "Failed"):
        return None
    code = fields.number(ended, "exitCode")
    finished = fields.at(ended, "finishedAt") or _ready_until(pod)
    disruption = fields.condition(pod, "DisruptionTarget", "True")
    reason = fields.text(pod, "status", "reason")
    if disruption is not None or reason in ("Evicted", "Preempting", "Terminated", "NodeLost"):
        word, line = disrupted(pod, fields.text(disruption, "reason"))
        if disruption is None and _DISK.search(line) and '"shm"' not in line:
            word = "disk"
        retry: Retry = "counted" if disruption is None else "free"
        if code is not None and code in BY_CODE and BY_CODE[code].retry == "free":
            line += f"; it stopped in time ({said(pod) or 'a newer step is committed'})"
            retry = "free"
        return Ending(word=word, line=line, code=code, retry=retry, finished=finished)
    if code is None:
        return _without_code(pod, phase, reason, finished)
    if fields.text(ended, "reason") == "OOMKilled" and code:
        words = said(pod)  # the supervisor's, if it lived to say any
        told = f": {words}" if "memory" in words else ""
        line = f"ran out of memory{_limit(pod)} and ended with {_named(code)}{told}"
        return Ending(word="memory", line=line, code=code, finished=finished)
    row = BY_CODE.get(code)
    words = said(pod)
    line = f"ended with {_named(code)}{': ' * bool(words)}{words}"
    word = "memory" if code == 137 else "exit"
    return Ending(
        word=word, line=line, code=code, retry=row.retry if row else "counted", finished=finished
    )


def said(pod: Object) -> str:
    """Return a job's own one line on its end, from the termination message."""
    message = fields.of(fields.ended(pod), "message")
    lines = [row.strip() for row in message.splitlines()] if isinstance(message, str) else []
    last = next(
        (row for row in reversed(lines) if row), ""
    )  # the log's end, where there is no line
    ours = _OURS.fullmatch(last)
    return (ours[2] if ours else last)[:_LONGEST]


def starved(pod: Object) -> bool:
    """Return whether the kernel killed a process of the pod for memory, however it ended."""
    return any(
        fields.text(status, "state", "terminated", "reason") == "OOMKilled"
        for status in fields.statuses(pod)
    )


def advice(code: int | None, run: str, word: str = "exit", line: str = "") -> str:
    """Return the next step after an attempt ended for good, with `code` or as its Ending says."""
    again = f"`launcher cancel {run}`, then the same submission goes on from its last commit"
    anew = f"`launcher cancel {run}`, then submit again"
    if word == "refused-by-node" and "not get valid pod" in line:
        return (
            "its device plugin gives a part of a node's NPUs only to pods that Volcano placed:"
            f' scheduler = "volcano" in launcher.toml, or all NPUs of a node; {anew}'
        )
    if word == "memory" or code == 137:
        return f"raise memory_per_npu_gib or lower batch_size: {again}"
    if word == "disk":
        return f"raise data_gib, by which its limit is computed: {again}"
    match code:
        case 65:
            return f"mend the data set or the prompt file: {again}"
        case 69:
            return f"`launcher doctor` tries the store: {again}"
        case 70:
            return f"lower learning_rate or choose another precision: {anew}"
        case 74:
            return f"`launcher logs {run}` names the pictures; {again}"
        case 78:
            return f"mend the spec: {anew}"
        case 79:
            return f"`launcher logs {run}`; raise stall_minutes if it was only slow: {again}"
        case 126 | 127:
            return "is --image an image of the jobs?"
        case _:
            return f"`launcher logs {run}` tells more; {again}"


def _named(code: int) -> str:
    row = BY_CODE.get(code)
    name = row.name if row else _SIGNALS.get(code, "")
    return f"{code} ({name})" if name else f"exit code {code}"


def _limit(pod: Object) -> str:
    limit = fields.text(fields.container(pod), "resources", "limits", "memory")
    return f" (limit {limit})" if limit else ""


def disrupted(pod: Object, reason: str) -> tuple[str, str]:
    """Return who ended a pod, or is about to: a short word, and what completes `it was`."""
    node = fields.text(pod, "spec", "nodeName") or "its node"
    word, line = _DISRUPTIONS.get(reason, ("evicted", "evicted from {node}"))
    message = fields.text(pod, "status", "message").rstrip(". ")
    return word, line.format(node=node) + (f": {message}" if message else "")


def _without_code(pod: Object, phase: str, reason: str, finished: datetime | None) -> Ending:
    """Return the end of a pod whose program left no code: its node would not have it, as a rule."""
    if phase == "Succeeded":
        return Ending(word="exit", line="ended well", code=0, retry="done", finished=finished)
    node = fields.text(pod, "spec", "nodeName") or "its node"
    message = fields.text(pod, "status", "message").rstrip(". ")
    if reason == "DeadlineExceeded":
        return Ending(word="deadline", line="was stopped at its deadline", finished=finished)
    if reason:
        line = f"was refused by {node} ({reason}){': ' * bool(message)}{message}"
        return Ending(word="refused-by-node", line=line, finished=finished)
    line = "ended without a word" + f": {message}" * bool(message)
    return Ending(word="unknown", line=line, finished=finished)


def _ready_until(pod: Object) -> datetime | None:
    return fields.at(fields.condition(pod, "Ready", "False"), "lastTransitionTime")
