"""Owns a training over several nodes as each node's supervisor lives it, by generations.

Node 0 claims, restores and commits; all start msrun together. When a node is lost the others end
their workers, stay, and go on from the last commit once it has come back: Kubernetes replaces that
one pod alone. Must not know how words travel (peers.py) or how workers are run (working.py).
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import closing

from jobs import layout, specs
from jobs.attempt import Attempt, begin, download_twice, patiently, prepare
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Stopped, Unavailable
from jobs.gang import TOO_EARLY
from jobs.msrun import Master
from jobs.peers import Head, Lost, Member, Take
from jobs.stopping import StopRequest
from jobs.stores import open_store
from jobs.uploading import Uploading
from jobs.verdict import conclude, judge
from jobs.working import World, hand_in

log = logging.getLogger("jobs.several")

POLL_SECONDS = 0.1
MARGIN_SECONDS = 3.0
"""Of the grace period, left for the way out."""
Attempted = Callable[[Attempt, World], None]
"""Does one attempt in a world of several nodes."""


def run(env: Environment, spec: specs.Spec, stop: StopRequest, attempted: Attempted) -> None:
    """Do this node's part of the run until its results are verified.

    Raises:
        BadSpec: node 0 has no address.
        JobError: this node failed, or was stopped; the others go on without it, and wait for it.
    """
    if not env.master or not 0 < env.master_port < 65536:
        raise BadSpec(
            f"JOB_MASTER, JOB_MASTER_PORT: {env.master!r}, {env.master_port} are no address of "
            "node 0, and JOB_NODES says that there are several"
        )
    if env.index == 0:
        with closing(Head(env)) as head:
            lead(env, spec, stop, attempted, head)
    else:
        with closing(Member(env)) as member:
            follow(env, spec, stop, attempted, member)


def lead(
    env: Environment, spec: specs.Spec, stop: StopRequest, attempted: Attempted, head: Head
) -> None:
    """Begin generations until one gets to the end.

    Raises:
        JobError: this node failed, or was stopped.
    """
    while True:
        attempt = prepare(env, spec, stop)
        try:
            attempted(attempt, Leading(head))
        except Lost as lost:
            log.warning("generation=%d over: %s", attempt.claim.epoch, lost)
            head.tell(again=attempt.claim.epoch)
            if stop.since is not None:
                judge(attempt, 0)
        else:
            head.dismiss()
            return


def follow(
    env: Environment, spec: specs.Spec, stop: StopRequest, attempted: Attempted, member: Member
) -> None:
    """Take part in generations until the run has its result.

    Raises:
        JobError: this node failed, or was stopped.
    """
    while (take := member.take(stop, lambda: is_over(env))) is not None:
        attempt = joined(env, spec, stop, take)
        try:
            attempted(attempt, Following(member))
        except Lost as lost:
            log.warning("generation=%d over: %s", take.claim.epoch, lost)
            if stop.since is not None:
                judge(attempt, 0)
        else:
            return
    log.info("result=present; nothing is left to do")


def joined(env: Environment, spec: specs.Spec, stop: StopRequest, take: Take) -> Attempt:
    """Return this node's part of a generation, restored to the step that it goes on from.

    Raises:
        Unavailable: the store was away past the deadline, or what it gave is not what it had.
    """
    store = open_store(env.store, env.access)
    attempt = begin(Attempt(env, spec, store, take.claim, stop, restored=take.restored))
    if take.restored:
        name = layout.step_name(take.restored)
        prefix = layout.key(env.run, layout.CHECKPOINTS, name)
        folder = env.work / "restored" / name
        try:
            patiently(env, stop, "restore", lambda: download_twice(store, prefix, folder))
        except (BadData, FileNotFoundError) as error:  # node 0 found it whole a moment ago
            shutil.rmtree(folder, ignore_errors=True)
            raise Unavailable(f"{name}: {error}") from error
    return attempt


def is_over(env: Environment) -> bool:
    """Say whether this submission's result is in the store; a store that is away says nothing."""
    store = open_store(env.store, env.access)
    try:
        claim = json.loads(store.read(layout.key(env.run, layout.CLAIM)))
        store.read(layout.key(env.run, layout.RESULT))
    except (OSError, ValueError):
        return False
    return isinstance(claim, dict) and claim.get("uid") == env.uid


class Leading(World):
    """The world as node 0 meets it in one generation."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def meet(self, attempt: Attempt) -> Master:
        """Wait for all nodes, let them restore, and start together."""
        self.head.begin(attempt.claim, attempt.restored, attempt.stop)
        log.info("generation=%d restored=%d", attempt.claim.epoch, attempt.restored)
        return self.head.go(attempt.stop)

    def check(self) -> None:
        """Look whether all are there."""
        self.head.check()

    def all_ended(self) -> bool:
        """Say whether all have ended; they end msrun when this one says so."""
        if not self.head.all_said("ended", "done"):
            return False
        self.head.tell(all=self.head.epoch)
        return True

    def listen(self) -> None:
        """Wait for news of a node that was lost."""
        self.head.listen()

    def finish(self, attempt: Attempt, uploader: Uploading, ended: int) -> None:
        """Make the result once all nodes have handed in theirs; it is written last.

        Raises:
            JobError: the attempt failed, or was stopped.
            Lost: a node is gone, or was told to stop: it is waited for.
        """
        head = self.head
        stopped = any(code == Stopped.code for code, _ in attempt.outbox.reasons())
        if ended == 0 and not stopped:
            while not head.all_said("done"):
                head.check()
                uploader.check()
                time.sleep(POLL_SECONDS)
            conclude(attempt)
        hand_in(attempt, uploader)
        head.tell(drained=head.epoch)
        if ended == 0 and stopped and attempt.stop.since is None:
            raise Lost(f"another node was told to stop; step {attempt.progress()} is committed")
        judge(attempt, ended)


class Following(World):
    """The world as another node meets it in one generation."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._told: set[str] = set()

    def _tell(self, word: str) -> None:
        if word not in self._told:
            self._told.add(word)
            self.member.tell(**{word: self.member.epoch})

    def meet(self, attempt: Attempt) -> Master:
        """Tell that this node has restored, and start with the others."""
        log.info("generation=%d restored=%d", attempt.claim.epoch, attempt.restored)
        return self.member.go(attempt.stop)

    def check(self) -> None:
        """Look whether the generation goes on."""
        self.member.check()

    def all_ended(self) -> bool:
        """Tell that this node has ended, and say whether all have."""
        self._tell("ended")
        return self.member.said("all")

    def listen(self) -> None:
        """Wait for news of a node that was lost."""
        self.member.listen()

    def finish(self, attempt: Attempt, uploader: Uploading, ended: int) -> None:
        """Hand in what this node has, and wait for what node 0 makes of it.

        Raises:
            JobError: this node failed, or was stopped.
            Lost: the generation is over.
        """
        hand_in(attempt, uploader)
        if ended == 0:
            self._tell("done")
            while not self._decided(attempt):
                time.sleep(POLL_SECONDS)
            if self.member.ended():
                return
        judge(attempt, ended)

    def _decided(self, attempt: Attempt) -> bool:
        """Say whether there is nothing to wait for any more.

        Raises:
            Lost: the generation is over, and this node was not told to stop.
        """
        member, since = self.member, attempt.stop.since
        if member.ended():
            return True
        if since is None:
            member.check()
            return False
        self._tell("leaving")
        # Node 0 commits what it had when all stopped together, and no step without a first one.
        early = any(reason == TOO_EARLY for _, reason in attempt.outbox.reasons())
        late = time.monotonic() - since > attempt.env.grace_seconds - MARGIN_SECONDS
        return early or late or member.link.lost or member.said("drained")
