"""Owns what `status` says of a run of a cluster: an explanation, a timeline and progress -> words.

Must not judge (explain.py) nor decide when to ask.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from jobs.errors import BY_CODE
from launcher import clusterrecords, fields, progress
from launcher.backends.kubernetes import Kubernetes
from launcher.records import Progress
from launcher.settings import Target
from launcher.snapshot import Snapshot
from launcher.why.explain import Explanation, explain
from launcher.why.timeline import timeline, told

KIND = "app.kubernetes.io/component"
ENDED = ("succeeded", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """All that is known of one run at one moment."""

    snapshot: Snapshot
    explanation: Explanation
    progress: Progress | None
    unread: str
    """Why the progress is not known; empty where it is, and where nobody asked."""

    @property
    def run(self) -> str:
        """The run's name."""
        return fields.name(self.snapshot.job)

    @property
    def ended(self) -> bool:
        """Return whether the run has ended for good."""
        return self.explanation.state in ENDED

    @property
    def line(self) -> str:
        """The state and its reason, on one line."""
        return f"{self.explanation.state}: {self.explanation.line}"

    def steady(self) -> tuple[object, ...]:
        """Return what changes only when something happened: not what passes by itself."""
        known = self.explanation
        line = _DURATION.sub("", known.line)
        far = self.progress and replace(self.progress, seconds_left=None)
        return known.state, known.word, line, known.attempt, known.retries_used, far

    def document(self) -> dict[str, Any]:
        """Return it all as plain values, with the keys that a local run's status has."""
        known, job = self.explanation, self.snapshot.job
        row = BY_CODE.get(known.code) if known.code is not None else None
        return {
            "run": self.run,
            "kind": fields.text(job, "metadata", "labels", KIND),
            "state": known.state,
            "word": known.word,
            "reason": known.line,
            "next_step": known.next_step,
            "stuck": known.stuck,
            "notes": list(known.notes),
            "code": known.code,
            "code_name": row.name if row else None,
            "attempt": known.attempt,
            "retries_used": known.retries_used,
            "retries": known.retries,
            "submitted": fields.text(job, "metadata", "creationTimestamp"),
            "namespace": fields.text(job, "metadata", "namespace"),
            "nodes": fields.number(job, "spec", "parallelism"),
            "workers": self._workers(),
            "phases": [asdict(phase) for phase in timeline(self.snapshot, self.progress)],
            **asdict(self.progress or Progress()),
            "records": clusterrecords.address(job),
            "unread": self.unread,
        }

    def text(self) -> str:
        """Return it for people."""
        row = self.document()
        known = self.explanation
        lines = [("run", self.run), ("kind", row["kind"]), ("state", self.line)]
        lines += [("", note) for note in known.notes]
        lines += [
            ("next", known.next_step),
            ("progress", self._progress()),
            ("committed", "" if row["committed"] is None else f"step {row['committed']}"),
            ("retries", self._retries()),
            ("phases", told(timeline(self.snapshot, self.progress))),
            ("submitted", row["submitted"]),
            ("records", row["records"]),
        ]
        return "\n".join(f"{key:<11}{value}" for key, value in lines if value)

    def _workers(self) -> int | None:
        workers = clusterrecords.environment(self.snapshot.job).get("JOB_WORKERS", "")
        return int(workers) if workers.isdecimal() else None

    def _progress(self) -> str:
        kind = fields.text(self.snapshot.job, "metadata", "labels", KIND)
        return progress.words(kind, self.progress) if self.progress else self.unread

    def _retries(self) -> str:
        known = self.explanation
        if not known.retries_used:
            return ""
        return f"{known.retries_used} of {known.retries} used"


_DURATION = re.compile(r"\b\d+[smhd](?: \d+[smh])?\b")


def look(cluster: Kubernetes, run: str, target: Target | None) -> Told:
    """Return what is known of a run.

    Args:
        cluster: where it is.
        run: its name.
        target: how this machine reaches stores; None: its records are not read.

    Raises:
        LauncherError: there is no such run, or the cluster refuses, or does not answer.
    """
    snapshot = cluster.snapshot(run)
    known, unread = None, ""
    began = any(fields.of(pod, "status", "startTime") for pod in snapshot.pods)
    if target is not None and (began or fields.condition(snapshot.job, "Complete", "True")):
        known, unread = clusterrecords.Reading(snapshot.job, target).result()
    return Told(
        snapshot=snapshot,
        explanation=explain(snapshot, known),
        progress=known,
        unread=unread and f"not known: {unread}",
    )
