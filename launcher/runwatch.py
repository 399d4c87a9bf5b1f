"""Owns what a log that is followed has to know of its run: the pods there are, and whether it ends.

Must not read logs. An API server that is away is waited for, and told once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from launcher import fields
from launcher.backends import snapshots
from launcher.backends.apiserver import translated
from launcher.backends.following import Changes
from launcher.backends.kubernetes import Kubernetes
from launcher.backends.podlogs import Away, started
from launcher.errors import Forbidden, LauncherError, NotFound, Unreachable
from launcher.why.explain import explain

Pod = Mapping[str, Any]

REFRESH_SECONDS, RETRY_SECONDS = 10.0, 2.0
REFUSED_SECONDS = 60.0
"""A server that has just been started refuses what it will allow when it knows its rules again."""
TELL_SECONDS = 10.0
"""How long a node does not answer before a person is told; most hiccups are shorter."""
TRIES = 3


class Watched:
    """The pods of one run, all that were ever seen, and whether it has ended."""

    def __init__(
        self, cluster: Kubernetes, job: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._cluster, self._job, self.say = cluster, job, say
        self._run, self._uid = fields.name(job), fields.uid(job)
        self._pods: dict[str, Pod] = {}
        self._changed = threading.Condition()
        self._told: set[str] = set()
        self.ended = False
        self.gone = False
        self.away_since: float | None = None
        self.back_at = 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the Job has completed."""
        return fields.condition(self._job, "Complete", "True") is not None

    def refresh(self) -> None:
        """Ask for the Job and its pods.

        Raises:
            LauncherError: the cluster refuses, or does not answer.
        """
        api = self._cluster.api
        try:
            job: Mapping[str, Any] | None = snapshots.job(api, self._run)
            if fields.uid(job) != self._uid:
                job = None  # the name is another run's
        except NotFound:
            job = None
        # After the Job: what it made before it ended is among them.
        with translated(api.host, self._run):
            pods = snapshots.pods_of(api, self._run)
        self._take(pods)
        with self._changed:
            self._job = job or self._job
            self.gone = job is None
            self.ended = self.gone or any(
                fields.condition(job, kind, "True") for kind in ("Complete", "Failed")
            )
            self._changed.notify_all()

    def _take(self, pods: list[Pod]) -> None:
        with self._changed:
            for pod in pods:
                owners = fields.rows(pod, "metadata", "ownerReferences")
                if self._uid in [row.get("uid") for row in owners]:
                    self._pods[fields.uid(pod)] = pod
            self._changed.notify_all()

    def next_pod(self, node: int, done: set[str], *, wait: bool) -> tuple[Pod | None, bool]:
        """Return the oldest pod of a node that was started and is not done, and if it is the last.

        With no pod, `last` says that none will come; `wait` waits for either.
        """
        with self._changed:
            while True:
                rows = [
                    pod
                    for uid, pod in self._pods.items()
                    if uid not in done and fields.index(pod) == node and started(pod) is not None
                ]
                rows.sort(key=lambda pod: started(pod) or 0)
                if rows:
                    return rows[0], len(rows) == 1
                if self.ended or not wait:
                    return None, self.ended
                self._changed.wait()

    def watch(self) -> None:
        """Go on asking until the run has ended.

        Raises:
            LauncherError: the cluster refuses for long.
        """
        with Changes(self._cluster.api, self._run) as changes:
            while not self.ended:
                try:
                    self.refresh()
                    self._answered()
                    self._explain()
                except (Unreachable, Forbidden) as error:
                    self._unanswered(error)
                if not self.ended:
                    self._wait(changes)

    def _wait(self, changes: Changes) -> None:
        try:
            self._take(changes.wait(RETRY_SECONDS if self.away_since else REFRESH_SECONDS))
        except LauncherError:  # the watch is refused; asking now and then does as well
            time.sleep(RETRY_SECONDS)

    def _explain(self) -> None:
        """Tell why there is nothing to read yet, each reason once."""
        with self._changed:
            running = any(
                fields.text(p, "status", "phase") == "Running" for p in self._pods.values()
            )
        if self.ended or running:
            return
        with suppress(Forbidden):  # whoever may not read events does without
            self.tell_why()

    def tell_why(self) -> None:
        """Tell where the run is and why, unless that was told.

        Raises:
            LauncherError: the cluster refuses, or does not answer.
        """
        found = explain(self._cluster.snapshot(self._run))
        if found.word not in self._told:
            self._told.add(found.word)
            self.say(f"{found.state}: {found.line}")

    def _answered(self) -> None:
        if self.away_since is not None:
            self.say("the cluster answers again")
            self.away_since, self.back_at = None, time.monotonic()

    def _unanswered(self, error: LauncherError) -> None:
        now = time.monotonic()
        if self.away_since is None:
            self.away_since = now
            self.say(f"{error.text}; going on when it answers")
        elif isinstance(error, Forbidden) and not self.unsettled():
            raise error

    def unsettled(self) -> bool:
        """Say whether the server is away, or has come back only now."""
        now = time.monotonic()
        since = self.away_since
        return (since is not None and now - since < REFUSED_SECONDS) or (
            self.back_at > 0 and now - self.back_at < REFUSED_SECONDS
        )


class Trouble:
    """Judges the failed requests for one pod's log: waits, tells, or gives up."""

    def __init__(self, watched: Watched, pod: str, *, patient: bool) -> None:
        self._watched, self._pod, self._patient = watched, pod, patient
        self._since: float | None = None
        self._count = 0
        self._told = False
        self._allowed = False

    def __call__(self, problem: Away | None) -> None:
        """Take note of a request that failed, or with None of one that succeeded.

        Raises:
            Forbidden: this user may not read logs.
            Unreachable: the node or the server does not answer, and nobody waits for it.
        """
        if problem is None:
            self._since, self._count, self._told, self._allowed = None, 0, False, True
            return
        now = time.monotonic()
        self._since = self._since or now
        self._count += 1
        unsettled = self._watched.unsettled() or (
            self._allowed and now - self._since < REFUSED_SECONDS
        )
        if problem.refused and not (self._patient and unsettled):
            rule = "its administrator adds to your Role (k8s/base/rbac.yaml):"
            rule += ' {apiGroups: [""], resources: [pods/log], verbs: [get]}'
            raise Forbidden(f"pod {self._pod}: {problem}", rule) from problem
        if not self._patient and self._count >= TRIES:
            raise Unreachable(f"pod {self._pod}: {problem}", "try again") from problem
        lasting = now - self._since >= TELL_SECONDS
        if lasting and not self._told and self._watched.away_since is None:
            self._told = True
            self._watched.say(f"pod {self._pod}: {problem}; going on when it answers")
