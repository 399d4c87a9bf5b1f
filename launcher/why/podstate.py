"""Owns where one attempt of a run is: unplaced, starting, running, stopping, ended, lost. Pure.

Must not look beyond its pod, but for the nodes and the gang it belongs to.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from launcher import fields, output
from launcher.fields import Object
from launcher.records import Progress
from launcher.snapshot import Snapshot
from launcher.why import endings, podreasons, queueing, schedulerwords, scheduling
from launcher.why.attempts import Attempt
from launcher.why.reasons import Reason

PodState = Literal["lost", "stopping", "pending", "starting", "retrying", "running", "ended"]
# Which pod speaks for the run: the first of these that one is in.
LOUDEST: tuple[PodState, ...] = (
    "lost", "stopping", "pending", "starting", "retrying", "running", "ended",
)  # fmt: skip
_UNSEEN = timedelta(seconds=30)
"""A scheduler that works has looked at a new pod long before."""


def judge(row: Attempt, snapshot: Snapshot, progress: Progress | None) -> tuple[PodState, Reason]:
    """Return where an attempt is, and why."""
    pod = row.pod
    if row.ending is not None:
        return _after(row, snapshot)
    if gone := lost(row, snapshot):
        return ("running" if gone.word == "node-silent" else "lost"), gone
    if fields.at(pod, "metadata", "deletionTimestamp"):
        return "stopping", _stopping(row, snapshot.now)
    if not fields.text(pod, "spec", "nodeName"):
        return "pending", _unplaced(pod, snapshot)
    since = _running_since(pod)
    if since is not None:
        return "running", _running(pod, since, snapshot.now, progress)
    if blocked := podreasons.blocked(pod, snapshot.events):
        return "starting", blocked
    return "starting", podreasons.starting(pod, snapshot.events, snapshot.now)


def lost(row: Attempt, snapshot: Snapshot) -> Reason | None:
    """Return that the pod's node is away, if it is."""
    return podreasons.lost(row.pod, snapshot.events, snapshot.nodes, snapshot.now)


def grace_left(row: Attempt, now: datetime) -> timedelta:
    """Return how long a pod has until it is killed; all its grace if it was not told to end."""
    until = fields.at(row.pod, "metadata", "deletionTimestamp")  # Kubernetes adds the grace to it
    if until is None:
        grace = fields.number(row.pod, "spec", "terminationGracePeriodSeconds") or 30
        return timedelta(seconds=grace)
    return max(timedelta(), until - now)


def history(row: Attempt, snapshot: Snapshot) -> list[str]:
    """Return a note on the attempts before: how many, and how the last one ended."""
    if row.started < 2 or row.ending is not None:
        return []
    counted, free = row.failures, row.free
    told = [f"{counted} of {_retries(snapshot.job)} retries used"] if counted else []
    told += [f"{free} not counted (stopped or disrupted)"] if free else []
    before = [pod for pod in snapshot.pods if (fields.index(pod) or 0) == row.index][:-1]
    last = endings.ending(before[-1]) if before else None
    end = f"; the one before {_past(last.line)}" if last else ""
    return [f"attempt {row.started}: {', '.join(told)}{end}"]


def _past(line: str) -> str:
    return line if line.startswith(("ended", "ran", "was")) else f"was {line}"


def _retries(job: Object) -> int:
    return fields.number(job, "spec", "backoffLimitPerIndex") or 0


def _after(row: Attempt, snapshot: Snapshot) -> tuple[PodState, Reason]:
    """Return what comes after an attempt that has ended."""
    ending = row.ending
    assert ending is not None
    if ending.retry in ("done", "final"):
        line = f"its pod {_past(ending.line)}; Kubernetes is about to take note"
        return "ended", Reason(word=ending.word, line=line)
    line = f"attempt {row.started} {_past(ending.line)}"
    if row.failures > _retries(snapshot.job) and ending.retry == "counted":
        return "ended", Reason(word=ending.word, line=f"{line}; its retries are used up")
    due = row.next_at
    if fields.at(row.pod, "metadata", "deletionTimestamp") and due is None:
        due = snapshot.now
    left = (due - snapshot.now).total_seconds() if due else 0
    soon = f"in about {output.duration(left)}" if left >= 1 else "any moment"
    used = f"{row.failures} of {_retries(snapshot.job)} retries used"
    if ending.retry == "free":
        used = "not counted as a retry"
    line += f"; attempt {row.started + 1} starts {soon} ({used})"
    step = "wait"
    # After these the next attempt is like to end so as well.
    if ending.word in ("memory", "disk", "refused-by-node"):
        run = fields.name(snapshot.job)
        step = f"wait; or {endings.advice(ending.code, run, ending.word, ending.line)}"
    return "retrying", Reason(word=f"retry-{ending.word}", line=line, next_step=step)


def _stopping(row: Attempt, now: datetime) -> Reason:
    why = fields.condition(row.pod, "DisruptionTarget", "True")
    left = output.duration(grace_left(row, now).total_seconds())
    line = f"up to {left} left to save and upload"
    if why is None:
        return Reason(word="stopping", line=line)
    word, told = endings.disrupted(row.pod, fields.text(why, "reason"))
    step = "wait: a new pod goes on from the last commit, and no retry is counted"
    return Reason(word=word, line=f"was {told}; {line}", next_step=step)


def _running_since(pod: Object) -> datetime | None:
    wanted = fields.container(pod).get("name")
    for status in fields.rows(pod, "status", "containerStatuses"):
        if status.get("name") == wanted:
            return fields.at(status, "state", "running", "startedAt")
    return None


def _running(pod: Object, since: datetime, now: datetime, progress: Progress | None) -> Reason:
    time = output.duration((now - since).total_seconds())
    line = f"on {fields.text(pod, 'spec', 'nodeName')} for {time}"
    if progress is not None and progress.step is not None:
        line += f": step {progress.step} of {progress.steps}"
    elif progress is not None and progress.pictures is not None:
        line += f": {progress.pictures} of {progress.asked} pictures"
    if progress is not None and progress.seconds_left:
        line += f", about {output.duration(progress.seconds_left)} left"
    return Reason(word="running", line=line)


def _unplaced(pod: Object, snapshot: Snapshot) -> Reason:
    """Return why no node has taken a pod."""
    job, spec = snapshot.job, fields.of(pod, "spec") or {}
    pods = fields.number(job, "spec", "parallelism") or 1
    training = fields.text(job, "metadata", "labels", "app.kubernetes.io/component") != "infer"
    told = fields.condition(pod, "PodScheduled", "False")
    message = fields.text(told, "message")
    events = fields.about(snapshot.events, pod, "FailedScheduling")
    message = message or (fields.text(events[-1], "message") if events else "")
    if fields.text(told, "reason") == "SchedulingGated":
        gates = ", ".join(fields.text(row, "name") for row in fields.rows(spec, "schedulingGates"))
        return Reason(word="gated", line=f"is held back by scheduling gates: {gates}")
    if volume := schedulerwords.about_volume(message):
        return volume
    judged = None
    if snapshot.nodes:
        judged = scheduling.verdict(spec, snapshot.nodes, pods, together=training)
    if judged is not None and judged.stuck:
        return judged
    if snapshot.pod_group and (gang := queueing.volcano(snapshot.pod_group)):
        return gang
    if judged is not None:
        return judged
    if message:
        return schedulerwords.meaning(message, scheduling.asks(spec))
    return _unseen(pod, snapshot.now)


def _unseen(pod: Object, now: datetime) -> Reason:
    scheduler = fields.text(pod, "spec", "schedulerName") or "default-scheduler"
    made = fields.at(pod, "metadata", "creationTimestamp")
    if made is None or now < made + _UNSEEN:
        return Reason(word="new", line="waits for the scheduler to look at it")
    since = output.duration((now - made).total_seconds())
    line = f"no scheduler named {scheduler} has looked at it for {since}"
    step = f"does {scheduler} run in this cluster? if not, set another scheduler in launcher.toml"
    return Reason(word="no-scheduler", line=line, next_step=step, stuck=True)
