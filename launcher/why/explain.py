"""Owns the answer to `why is it not running, and will it ever`: a Snapshot -> one line. Pure.

Must not fetch. Asks in order whether the Job has ended, is being removed, is held by a queue, is
refused its pods; then each pod (podstate.py). The subjects have modules of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from launcher import fields, output
from launcher.records import Progress
from launcher.snapshot import Snapshot
from launcher.why import admission, attempts, endings, podstate, queueing
from launcher.why.attempts import Attempt
from launcher.why.podstate import PodState
from launcher.why.reasons import Reason

State = Literal["queued", "suspended", "succeeded", "failed", PodState]
UNSEEN = timedelta(seconds=30)
"""A controller that works has looked at a new object long before."""
_CULPRIT = re.compile(r"for pod \S*?/?([^\s/]+) failed with exit code (\d+)")
_Attempts = tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a person wants to know of a run."""

    state: State
    word: str
    """The reason as a short, stable word, for programs."""
    line: str
    """The reason for people, one line, without the run's name."""
    next_step: str = ""
    """What to do; empty where there is nothing to do."""
    stuck: bool = False
    """Whether waiting alone never helps."""
    notes: tuple[str, ...] = ()
    """What else there is to say: of other pods, of earlier attempts, of the deadline."""
    code: int | None = None
    """Exit code of the attempt that ended last, or that ended the run."""
    attempt: int | None = None
    """Which attempt this is, from 1; of several pods the highest."""
    retries_used: int | None = None
    """Of several pods the highest."""
    retries: int | None = None
    """Counted retries that each pod index has."""


def explain(snapshot: Snapshot, progress: Progress | None = None) -> Explanation:
    """Return where a run is, why, and what to do.

    Args:
        snapshot: what the cluster says; any field of its objects may be missing.
        progress: what the run's records say, if they were read.
    """
    found = attempts.newest(snapshot.pods)
    answer = (
        _over(snapshot, found, progress)
        or _removed(snapshot, found)
        or _held(snapshot, found)
        or _refused(snapshot, found)
        or _by_pods(snapshot, found, progress)
    )
    allowed = fields.number(snapshot.job, "spec", "backoffLimitPerIndex")
    used = max((row.failures for row in found), default=None)
    if used is not None and allowed is not None:
        used = min(used, allowed)  # the failure after the last retry is none
    codes = [row.ending.code for row in found if row.ending]
    return replace(
        answer,
        notes=(*answer.notes, *_memory(snapshot), *_deadline(snapshot, answer)),
        code=next((code for code in (answer.code, *reversed(codes)) if code is not None), None),
        attempt=max((row.started for row in found), default=None),
        retries_used=used,
        retries=allowed,
    )


def _as(state: State, reason: Reason, notes: tuple[str, ...] = ()) -> Explanation:
    return Explanation(
        state=state,
        word=reason.word,
        line=reason.line,
        next_step=reason.next_step,
        stuck=reason.stuck,
        notes=notes,
    )


def _over(snapshot: Snapshot, found: _Attempts, progress: Progress | None) -> Explanation | None:
    """Return how the Job has ended, or is about to."""
    job = snapshot.job
    if fields.condition(job, "Complete", "True"):
        if progress is not None and progress.success is False:
            return _unrecorded()
        reason = Reason(word="succeeded", line="its results are committed and verified")
        return replace(_as("succeeded", reason), code=0)
    for kind, state in (("Failed", "failed"), ("FailureTarget", "stopping")):
        if fails := fields.condition(job, kind, "True"):
            answer = _failed(snapshot, found, fails)
            if state == "stopping":
                line = f"it has failed: {answer.line}"
                return replace(answer, state="stopping", line=line)
            return answer
    return None


def _unrecorded() -> Explanation:
    """Return that the pods ended well and the store, which could be read, has nothing of it."""
    line = "its pods ended with 0, and the store has no record that the run succeeded"
    step = "is --image an image of the jobs, and does this machine read the store that pods write"
    step += " (store_endpoint_here)? launcher doctor tries both"
    return replace(_as("failed", Reason(word="no-record", line=line, next_step=step)), code=0)


def _failed(snapshot: Snapshot, found: _Attempts, fails: fields.Object) -> Explanation:
    """Return why a Job has failed, from its condition and the pod that is to blame."""
    run, message = fields.name(snapshot.job), fields.text(fails, "message")
    told, cause = _CULPRIT.search(message), fields.text(fails, "reason")
    if cause == "DeadlineExceeded":
        limit = fields.number(snapshot.job, "spec", "activeDeadlineSeconds")
        line = "stopped at its deadline"
        line += f" of {output.duration(limit)} (--max-duration)" if limit else ""
        step = f"`launcher cancel {run}`, then the same submission with a longer --max-duration"
        reason = Reason(
            word="deadline", line=line, next_step=f"{step} goes on from its last commit"
        )
        return _as("failed", reason)
    blamed = [row for row in found if told and fields.name(row.pod) == told[1]]
    gone = attempts.indexes(fields.text(snapshot.job, "status", "failedIndexes"))
    blamed = blamed or [row for row in found if row.ending and row.index in gone]
    blamed = blamed or [row for row in found if row.ending and row.ending.retry != "done"]
    if not blamed:
        code = int(told[2]) if told else None
        line = f"{message or cause or 'Kubernetes does not say why'}"
        reason = Reason(word="exit", line=line, next_step=endings.advice(code, run))
        return replace(_as("failed", reason), code=code)
    row = min(blamed, key=lambda row: (_end(row) or snapshot.now, row.index))
    ending = row.ending
    line = ending.line if ending else message
    if row.index in gone and ending and ending.retry != "final":
        line += _used_up(fields.number(snapshot.job, "spec", "backoffLimitPerIndex") or 0)
    code = ending.code if ending else None
    word = ending.word if ending else "exit"
    prefix = f"index {row.index}: " if _many(snapshot) else ""
    reason = Reason(word=word, line=prefix + line, next_step=endings.advice(code, run, word, line))
    return replace(_as("failed", reason), code=code)


def _end(row: Attempt) -> datetime | None:
    return row.ending.finished if row.ending else None


def _used_up(retries: int) -> str:
    match retries:
        case 0:
            return "; it had no retries"
        case 1:
            return "; its retry is used up"
        case _:
            return f"; its {retries} retries are used up"


def _removed(snapshot: Snapshot, found: _Attempts) -> Explanation | None:
    """Return that the Job is being deleted, and what its pods still do."""
    if fields.at(snapshot.job, "metadata", "deletionTimestamp") is None:
        return None
    living = [row for row in found if row.ending is None]
    for row in living:
        if lost := podstate.lost(row, snapshot):
            return _as("lost", lost)
    left = [podstate.grace_left(row, snapshot.now) for row in living]
    line = "is about to be gone"
    if left:
        most = output.duration(max(left).total_seconds())
        pods = "its pod has" if len(left) == 1 else f"its {len(left)} pods have"
        line = f"cancelled: {pods} up to {most} left to save and upload"
    return _as("stopping", Reason(word="cancelled", line=line))


def _held(snapshot: Snapshot, found: _Attempts) -> Explanation | None:
    """Return who suspends the Job, and until when."""
    job = snapshot.job
    if fields.of(job, "spec", "suspend") is not True:
        return None
    living = [row for row in found if row.ending is None]
    notes = (f"{output.counted(len(living), 'pod')} of before still to stop",) if living else ()
    if fields.text(job, "metadata", "labels", queueing.QUEUE_LABEL) or snapshot.workload:
        reason = queueing.kueue(job, snapshot.workload, snapshot.queue)
        if snapshot.no_kueue:
            reason = queueing.without_kueue(job)
        return _as("suspended" if reason.word == "stopped" else "queued", reason, notes)
    patch = '{"spec":{"suspend":false}}'
    step = f"it goes on with: {fields.kubectl(job)} patch job {fields.name(job)} -p '{patch}'"
    reason = Reason(word="suspended", line="by hand, no queue holds it", next_step=step, stuck=True)
    return _as("suspended", reason, notes)


def _refused(snapshot: Snapshot, found: _Attempts) -> Explanation | None:
    """Return why pods that are missing cannot be created."""
    events = fields.about(snapshot.events, snapshot.job, "FailedCreate")
    wanted = fields.number(snapshot.job, "spec", "parallelism") or 1
    living = [row for row in found if row.ending is None]
    if not events or len(living) >= wanted:
        return None
    made = [fields.at(row.pod, "metadata", "creationTimestamp") for row in living]
    last = events[-1]
    if any(moment and moment > fields.when(last) for moment in made):
        return None
    namespace = fields.text(snapshot.job, "metadata", "namespace")
    reason = admission.meaning(fields.text(last, "message"), namespace)
    notes = (f"{len(living)} of {wanted} pods are there",) if wanted > 1 else ()
    return _as("pending", reason, notes)


def _by_pods(snapshot: Snapshot, found: _Attempts, progress: Progress | None) -> Explanation:
    """Return what the pod says that is furthest behind, and the others in notes."""
    if not found:
        return _as("pending", _without_pods(snapshot))
    groups: dict[tuple[PodState, str], list[tuple[Attempt, Reason]]] = {}
    for row in found:
        state, reason = podstate.judge(row, snapshot, progress)
        groups.setdefault((state, reason.word), []).append((row, reason))
    order = sorted(
        groups, key=lambda key: (not groups[key][0][1].stuck, podstate.LOUDEST.index(key[0]))
    )
    told = [_grouped(groups[key], _many(snapshot), len(groups) == 1) for key in order]
    first = told[0]
    notes = [f"{key[0]}: {reason.line}" for key, reason in zip(order[1:], told[1:], strict=True)]
    speaker = groups[order[0]][0][0]
    notes += podstate.history(speaker, snapshot)
    state, _ = order[0]
    return _as("stopping" if state == "ended" else state, first, tuple(notes))


def _grouped(rows: list[tuple[Attempt, Reason]], many: bool, alone: bool) -> Reason:
    """Return what several pods have in common, said of their indexes."""
    reason = rows[0][1]
    same = all(other.line == reason.line for _, other in rows)
    if not many or (alone and same and len(rows) > 1):
        return reason
    which = attempts.spans([row.index for row, _ in rows])
    noun = "index" if len(rows) == 1 else "indexes"
    if reason.word == "running" and len(rows) > 1:
        reason = replace(reason, line=re.sub(r"^on \S+", f"on {len(rows)} nodes", reason.line))
    elif not same:
        which += f" (this is {rows[0][0].index})"
    return replace(reason, line=f"{noun} {which}: {reason.line}")


def _without_pods(snapshot: Snapshot) -> Reason:
    job = snapshot.job
    made = fields.at(job, "metadata", "creationTimestamp")
    if (fields.number(job, "status", "failed") or 0) > 0:
        return Reason(word="retry", line="its pods have ended; the next one is about to be made")
    if made is None or snapshot.now < made + UNSEEN:
        return Reason(word="new", line="was just created; it has no pod yet")
    since = output.duration((snapshot.now - made).total_seconds())
    line = f"has no pod, {since} after it was created"
    step = f"{fields.kubectl(job)} describe job {fields.name(job)}; the cluster's Job controller"
    step += " does not answer: ask the administrator"
    return Reason(word="no-pods", line=line, next_step=step)


def _memory(snapshot: Snapshot) -> tuple[str, ...]:
    """Return a note where the kernel killed a process and its pod ended well all the same."""
    well = [pod for pod in snapshot.pods if fields.number(fields.ended(pod), "exitCode") == 0]
    if not any(endings.starved(pod) for pod in well):
        return ()
    return (
        "one of its processes was killed for memory (OOMKilled), though it ended with 0:"
        " raise memory_per_npu_gib",
    )


def _deadline(snapshot: Snapshot, answer: Explanation) -> tuple[str, ...]:
    """Return a note with the time that a run has left."""
    limit = fields.number(snapshot.job, "spec", "activeDeadlineSeconds")
    began = fields.at(snapshot.job, "status", "startTime")
    if limit is None or began is None or answer.state in ("succeeded", "failed", "suspended"):
        return ()
    left = began + timedelta(seconds=limit) - snapshot.now
    return (f"deadline in {output.duration(left.total_seconds())} (--max-duration)",)


def _many(snapshot: Snapshot) -> bool:
    return (fields.number(snapshot.job, "spec", "completions") or 1) > 1
