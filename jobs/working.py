"""Owns what an attempt does between restore and verdict: stage, run the workers, watch, hand in.

Must not decide what becomes of the attempt (verdict.py), nor know how nodes speak (several.py).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Protocol

from jobs import specs
from jobs.attempt import Attempt, patiently
from jobs.errors import JobError, Stalled, Unavailable
from jobs.msrun import Follower, Master, Msrun
from jobs.results import finished
from jobs.staging import KEYS, stage
from jobs.uploading import Uploading, upload_seconds
from jobs.verdict import conclude, judge, raise_reasons

log = logging.getLogger("jobs.runtime")

POLL_SECONDS = 0.2
LINGER_SECONDS = {"CPU": 0.0, "Ascend": 60.0}
"""How long workers that have handed over everything may take to leave their group: on CPU that
is 10 s of polite waiting with nothing to release."""


class World(Protocol):
    """The other nodes of the run, as an attempt meets them. Each call may raise `peers.Lost`."""

    def finished(self, attempt: Attempt) -> bool:
        """Say whether there is nothing left to do: the run's result is there."""
        return finished(attempt)

    def meet(self, attempt: Attempt) -> Master | None:
        """Wait until all are about to start their workers; None: this node is the only one."""

    def check(self) -> None:
        """Look whether all are there."""

    def all_ended(self) -> bool:
        """Say whether all nodes' workers have ended, now that this node's have."""

    def listen(self) -> None:
        """Wait for news that explains the failure of a worker that has given no reason."""

    def finish(self, attempt: Attempt, uploader: Uploading, ended: int) -> None:
        """Bring the end of this node's workers to a verdict.

        Raises:
            JobError: the attempt failed, or was stopped.
        """


class Alone(World):
    """The world of a run on one node."""

    def meet(self, attempt: Attempt) -> Master | None:
        """Wait for nobody."""

    def check(self) -> None:
        """Miss nobody."""

    def all_ended(self) -> bool:
        """Have ended with this node."""
        return True

    def listen(self) -> None:
        """Hear nothing."""

    def finish(self, attempt: Attempt, uploader: Uploading, ended: int) -> None:
        """Make the result, send everything, judge."""
        if ended == 0:
            conclude(attempt)
        hand_in(attempt, uploader)
        judge(attempt, ended)


ALONE = Alone()


def hand_in(attempt: Attempt, uploader: Uploading) -> None:
    """Wait until everything is in the store; if that fails, a worker's reason comes first.

    Raises:
        JobError: the uploader gave up.
    """
    try:
        uploader.drain()
    except JobError:
        raise_reasons(attempt)
        raise


def work(attempt: Attempt, world: World = ALONE) -> None:
    """Do what the run still lacks.

    Raises:
        JobError: the attempt failed, or was stopped.
        Lost: another node is gone; the run goes on with another attempt.
    """
    env, spec, stop = attempt.env, attempt.spec, attempt.stop
    if stop.since is not None:
        raise Unavailable("stopped on request before the workers were started")
    stopped = lambda: stop.since is not None  # noqa: E731
    staged = patiently(env, stop, "staging", lambda: stage(env, spec, stopped))
    log.info(
        "attempt=%d restored=%d workers=%d", attempt.claim.epoch, attempt.restored, env.workers
    )
    # Worker logs are for our own lines: MindSpore at ERROR, no warnings of Python packages.
    quiet = {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    quiet["JOB_SPEC"] = specs.to_json(staged)
    quiet["GLOG_v"] = os.environ.get("GLOG_v", "3")  # noqa: SIM112
    # How long a worker waits for another one in a collective on CPU, and for its heartbeat: 30 s by
    # MindSpore's own default, less than compiling may differ. The stall limit is the judge, and
    # comes first.
    quiet["MS_NODE_TIMEOUT"] = str(round(2 * env.stall_seconds))
    master = world.meet(attempt)
    uploader = Uploading(attempt)
    try:
        workers = Msrun.start(env, spec.kind, attempt.logs, quiet, master)
        ended = watch(attempt, workers, uploader, world)
        known = ended in (0, -signal.SIGKILL) or bool(attempt.outbox.reasons())
        if not known and attempt.stop.since is None:
            world.listen()
        world.finish(attempt, uploader, ended)
    except JobError as error:
        told = as_given(str(error), spec, staged)
        if told == str(error):
            raise
        raise type(error)(told) from error
    finally:
        uploader.end()


def as_given(text: str, spec: specs.Spec, staged: specs.Spec) -> str:
    """Return a reason that names the addresses that were given, not the copies of this node."""
    given = spec.model_dump(include=set(KEYS))
    for key, path in staged.model_dump(include=set(KEYS)).items():
        if path != given[key]:
            text = text.replace(str(path), str(given[key]))
    return text


def watch(attempt: Attempt, workers: Msrun, uploader: Uploading, world: World = ALONE) -> int:
    """Follow the workers until they end; return msrun's exit code, or the failed worker's.

    Raises:
        Stalled: a worker was silent past the limit; all are killed.
        JobError: the uploader gave up; the workers are killed, for their work cannot be kept.
        Lost: another node is gone; the workers are killed.
    """
    follower = Follower(attempt.logs, sys.stdout)
    limit: float | None = None
    ended_at: float | None = None
    try:
        while workers.process.poll() is None:
            if ended_at is None and len(attempt.outbox.ended()) == attempt.env.workers:
                ended_at = time.monotonic() if world.all_ended() else None
            if ended_at and time.monotonic() - ended_at >= LINGER_SECONDS[attempt.env.device]:
                return 0
            time.sleep(POLL_SECONDS)
            follower.copy()
            failed = workers.failed()
            if failed is not None:
                return failed
            world.check()
            try:
                uploader.check()
            except Unavailable:  # it may be that node 0 has begun anew without this one
                world.listen()
                raise
            if attempt.stop.since is not None:
                attempt.outbox.stop.touch()
                limit = limit or attempt.env.grace_seconds - upload_seconds(attempt)
                if time.monotonic() - attempt.stop.since > limit:
                    log.warning("stop=late seconds=%.0f; killing the workers", limit)
                    return -signal.SIGTERM
            else:
                check_stall(attempt)
        return workers.process.returncode
    finally:
        workers.kill()
        follower.copy(last=True)


def check_stall(attempt: Attempt) -> None:
    """Compare the age of each worker's last sign of life with the limit.

    Raises:
        Stalled: a worker was silent for longer.
    """
    limit = attempt.env.stall_seconds
    now = time.time()
    for local in range(attempt.env.workers):
        rank = attempt.env.index * attempt.env.workers + local
        signs = (attempt.env.work / "alive" / str(rank), attempt.logs / f"worker_{rank}.log")
        newest = max((path.stat().st_mtime for path in signs if path.exists()), default=0.0)
        silent = min(now - newest, time.monotonic() - attempt.started)
        if silent > limit:
            raise Stalled(f"worker {rank}: silent for {silent:.0f} s, the limit is {limit:.0f} s")
