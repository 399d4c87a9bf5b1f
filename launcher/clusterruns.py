"""Owns the verbs on runs of a cluster: list, status, cancel, and waiting for an end.

Everything is asked anew, by labels: this machine keeps nothing. Must not judge what it is told
(explain.py) nor send a request itself (backends).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from launcher import fields, output, places, redraw
from launcher.backends.following import Changes
from launcher.backends.kubernetes import Kubernetes
from launcher.clusterstatus import Told, look
from launcher.errors import Forbidden, NotFound, RunFailed, Unreachable
from launcher.settings import Settings
from launcher.snapshot import Snapshot
from launcher.why import endings
from launcher.why.explain import explain

REFRESH_SECONDS = 10
"""A status that is watched is fetched anew so often where nothing wakes it: records change, too."""
AWAY_SECONDS = 300
"""An API server may be away for so long before a verb that waits gives up."""
REFUSED_SECONDS = 60
RETRY_SECONDS = 2


def connected(settings: Settings, run: str = "") -> Kubernetes:
    """Return the cluster that is meant.

    Raises:
        NotFound: nobody chose a backend, the run is not here, and there is no cluster to ask.
        Unreachable, Misconfigured: there is no kubeconfig, or it cannot be read.
    """
    target = settings.target
    if run:
        places.legal(run)
    try:
        return Kubernetes(target.context, target.namespace)
    except Unreachable as error:
        root = places.unasked_root(settings)
        if not run or root is None:
            raise
        raise NotFound(
            f"run {run!r}: no such run in {root}, and there is no kubeconfig to find a cluster by",
            error.hint,
        ) from error


def show_all(settings: Settings, *, as_json: bool) -> None:
    """Print the runs of the namespace, oldest first.

    Raises:
        LauncherError: the cluster refuses, or does not answer.
    """
    cluster = connected(settings)
    found = cluster.runs()
    if as_json:
        output.as_json([asdict(row) for row in found])
    elif found:
        rows = [
            (row.run, row.kind, row.told, row.ended, row.duration, row.submitted) for row in found
        ]
        head = ("RUN", "KIND", "STATE", "ENDED", "DURATION", "SUBMITTED")
        output.data(output.table(head, rows))
    else:
        output.say(f"no runs in namespace {cluster.namespace} of {cluster.server}")


def show(settings: Settings, run: str, *, as_json: bool, watch: bool = False) -> None:
    """Print what is known of a run; watching, again at each change until it ends.

    Raises:
        RunFailed: the run that was watched did not succeed.
        LauncherError: there is no such run, or the cluster refuses, or does not answer.
    """
    cluster = connected(settings, run)
    if not watch:
        _print(look(cluster, run, settings.target), as_json=as_json)
        return
    last = None
    for told in _followed(cluster, run, settings):
        if told.steady() != last:
            redraw.show(told.document() if as_json else told.text(), first=last is None)
            last = told.steady()
        if told.ended:
            _end(told)
            return


def wait(cluster: Kubernetes, run: str, settings: Settings) -> None:
    """Follow a run's log to stderr until its end, and tell how it ended.

    Raises:
        RunFailed: it did not succeed.
        LauncherError: it is gone, or the cluster refuses, or does not answer for long.
        KeyboardInterrupt: the person went away; the run goes on.
    """
    from launcher.clusterlogs import RunLog
    from launcher.loglines import Choice

    flags = _flags(settings)
    log = RunLog(cluster, cluster.find(run), Choice(), settings.target)
    try:
        log.follow(output.raw_aside)
    except KeyboardInterrupt:
        if not log.watched.ended:
            output.say(
                f"\n{run} goes on: `launcher logs {run} -f{flags}` follows it,"
                f" `launcher cancel {run}{flags}` ends it"
            )
        raise
    log.end()


def cancel(settings: Settings, run: str, *, now: bool) -> None:
    """Delete a run's Job, and wait while its pods save what they have.

    The Job of a run that has ended is deleted, too, which frees its name; its results stay.

    Raises:
        LauncherError: there is no such run, or the cluster refuses, or does not answer for long.
        KeyboardInterrupt: the person went away; the deletion goes on by itself.
    """
    cluster = connected(settings, run)
    told = look(cluster, run, None)
    job = told.snapshot.job
    with Changes(cluster.api, run) as changes:
        cluster.cancel(job, now=now)
        output.say(f"{run}: {_farewell(told, now=now)}")
        try:
            _until_gone(cluster, job, changes)
        except KeyboardInterrupt:
            output.say(f"\n{run}: the cluster goes on deleting it")
            raise
    output.say(f"{run}: is gone; its name is free, and what it committed stays in the store")


def _farewell(told: Told, *, now: bool) -> str:
    """Return what is about to be done to a run, and what it costs."""
    grace = fields.number(told.snapshot.job, "spec", "template", "spec", _GRACE) or 0
    if told.ended:
        return f"has ended: {told.line}; removing its Job"
    if not any(fields.of(pod, "status", "startTime") for pod in told.snapshot.pods):
        return "has not begun, so that there is nothing to save; removing it"
    if now:
        return "killing it; all since its last commit is lost"
    return f"stopping; it commits what it has first, within {output.duration(grace)}"


_GRACE = "terminationGracePeriodSeconds"


def _until_gone(cluster: Kubernetes, job: Mapping[str, Any], changes: Changes) -> None:
    """Tell the end of each pod until the Job itself is gone."""
    run, uid = fields.name(job), fields.uid(job)
    told: set[str] = set()
    seen: list[fields.Object] = []
    waits = -1
    away = _Away()
    while True:
        with away.tolerated():
            left = _left(cluster, run, uid)
            pods = left.pods if left else ()
            for pod in [*seen, *pods]:
                ended, name = endings.ending(pod), fields.name(pod)
                if ended is not None and name not in told:
                    told.add(name)
                    output.say(f"{run}: pod {name} {ended.line}")
            if left is None:
                return
            why = explain(left)
            if why.stuck and why.line not in told:
                told.add(why.line)
                output.say(f"{run}: {why.line}\n  {why.next_step}")
            living = sum(endings.ending(pod) is None for pod in pods)
            if living not in (waits, 0):
                output.say(f"{run}: waiting for {output.counted(living, 'pod')}")
            waits = living
        seen = changes.wait(RETRY_SECONDS)


def _left(cluster: Kubernetes, run: str, uid: str) -> Snapshot | None:
    """Return what is left of a Job; None: it is gone."""
    try:
        found = cluster.snapshot(run)
    except NotFound:
        return None
    # A new run of that name is no concern of ours.
    return found if fields.uid(found.job) == uid else None


def _followed(cluster: Kubernetes, run: str, settings: Settings) -> Iterator[Told]:
    """Yield what is known of a run, at each change and now and then.

    Raises:
        NotFound: it was deleted; one that is submitted under its name later is another run.
        Unreachable: the API server was away for long.
    """
    uid = ""
    away = _Away()
    with Changes(cluster.api, run) as changes:
        while True:
            told = None
            with away.tolerated():
                told = look(cluster, run, settings.target)
            if told is not None:
                uid = uid or fields.uid(told.snapshot.job)
                if fields.uid(told.snapshot.job) != uid:
                    raise NotFound(f"run {run!r}: was cancelled, and its name is another run's")
                yield told
            changes.wait(RETRY_SECONDS if away.since else REFRESH_SECONDS)


class _Away:
    """Knows since when the API server does not answer, and how long that may last."""

    def __init__(self) -> None:
        self.since = 0.0

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let what is asked inside fail while the API server is away for a while.

        Raises:
            Unreachable: it was away for AWAY_SECONDS.
        """
        try:
            yield
        except (Unreachable, Forbidden) as error:
            away = time.monotonic() - self.since if self.since else 0.0
            # A server that was just started refuses everything until it knows its roles.
            if isinstance(error, Forbidden) and not 0 < away < REFUSED_SECONDS:
                raise
            if away > AWAY_SECONDS:
                raise
            if not self.since:
                self.since = time.monotonic()
                output.say(f"{error.text}; waiting for it")
        else:
            if self.since:
                output.say("the cluster answers again")
            self.since = 0.0


def _print(told: Told, *, as_json: bool) -> None:
    if as_json:
        output.as_json(told.document())
    else:
        output.data(told.text())


def _end(told: Told) -> None:
    """End as the run did.

    Raises:
        RunFailed: it did not succeed.
    """
    if told.explanation.state != "succeeded":
        raise RunFailed(f"run {told.run!r}: {told.explanation.line}", told.explanation.next_step)


def _flags(settings: Settings) -> str:
    """Return the flags, each with a blank before, that lead another verb to the same cluster."""
    import shlex

    found = ""
    for key, flag in (("backend", "--backend"), ("context", "--context"), ("namespace", "-n")):
        if settings.origins[key].startswith("--"):
            found += f" {flag} {shlex.quote(str(getattr(settings.target, key)))}"
    return found
