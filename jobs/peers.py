"""Owns who is in a world of several nodes: node 0 listens, the others come to it by its name.

A generation is an attempt of node 0's (its claim's epoch). Each word is of one generation:

    node N -> 0   hello, leaving; ready: has restored; ended: its workers have; done: all is sent
    node 0 -> N   take: restore this; go: start msrun; all: every node's workers have ended;
                  drained: what was handed over is committed; again: this generation is over; end

Must not start processes nor touch the store: several.py says what happens when.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from jobs.claims import Claim
from jobs.environment import Environment
from jobs.errors import BadSpec, Unavailable
from jobs.links import Link, Listener, connect
from jobs.msrun import Master, free_port
from jobs.stopping import StopRequest

log = logging.getLogger("jobs.peers")

POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""Between two looks into the store for the result, while nobody answers."""
BLAME_SECONDS = 5.0
"""How long a worker that fails without a reason waits for the news that another node is lost."""
BYE_SECONDS = 5.0


class Lost(Exception):
    """Another node is gone or has said so: the generation is over, and the next one may begin."""


class Head:
    """Node 0: it waits for the others, and tells them what to do."""

    def __init__(self, env: Environment) -> None:
        """Listen.

        Raises:
            BadSpec: the port is taken.
        """
        self.env, self.epoch = env, 0
        self._links: dict[int, Link] = {}
        self._members: dict[int, Link] = {}
        self._guests: list[Link] = []
        try:
            self._listener = Listener(env.master_port)
        except OSError as error:
            raise BadSpec(f"JOB_MASTER_PORT: {env.master_port}: {error.strerror}") from error

    def close(self) -> None:
        """Part from all."""
        self._listener.close()
        for link in (*self._links.values(), *self._guests):
            link.close()

    def begin(self, claim: Claim, restored: int, stop: StopRequest) -> None:
        """Wait for all nodes and begin a generation.

        Raises:
            Unavailable: some did not come in time, or a stop was asked for.
        """
        deadline, told = time.monotonic() + self.env.rendezvous_seconds, False
        while missing := self._missing():
            names = ", ".join(str(index) for index in missing)
            if stop.since is not None:
                raise Unavailable(f"stopped on request while waiting for node {names}")
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"rendezvous: node {names} of {self.env.nodes} did not come within "
                    f"{self.env.rendezvous_seconds:.0f} s"
                )
            if not told:
                log.info("rendezvous=waiting for node %s of %d", names, self.env.nodes)
            told = True
            time.sleep(POLL_SECONDS)
        self.epoch, self._members = claim.epoch, dict(self._links)
        self.tell(take={"claim": asdict(claim), "restored": restored})

    def go(self, stop: StopRequest) -> Master:
        """Wait until all have restored, let them start, and return where the master listens.

        Raises:
            Lost: a node was lost meanwhile.
            Unavailable: a stop was asked for.
        """
        while not self.all_said("ready"):
            self.check()
            if stop.since is not None:
                raise Unavailable("stopped on request before the workers were started")
            time.sleep(POLL_SECONDS)
        host, port = next(iter(self._members.values())).here, free_port()
        self.tell(go={"epoch": self.epoch, "host": host, "port": port})
        return Master(host, port)

    def tell(self, **subjects: object) -> None:
        """Tell all nodes of this generation."""
        for link in self._members.values():
            link.tell(**subjects)

    def all_said(self, *words: str) -> bool:
        """Say whether each node has said one of the words in this generation."""
        return all(
            any(link.told.get(word) == self.epoch for word in words)
            for link in self._members.values()
        )

    def check(self) -> None:
        """Make sure that all nodes of this generation are there.

        Raises:
            Lost: one is not.
        """
        self._sort()
        for index, link in sorted(self._members.items()):
            if link.lost or self._links[index] is not link:
                raise Lost(f"node {index}: {link.why_lost or 'was started anew'}")

    def listen(self) -> None:
        """Wait for news that explains why a worker of this node has failed.

        Raises:
            Lost: another node is gone.
        """
        _listen(self.check, self._members.values)

    def dismiss(self) -> None:
        """Tell all that the run has succeeded, and wait until they have understood."""
        self.tell(end=True)
        deadline = time.monotonic() + BYE_SECONDS
        while time.monotonic() < deadline and not all(x.lost for x in self._members.values()):
            time.sleep(POLL_SECONDS)

    def _missing(self) -> list[int]:
        self._sort()
        here = {i for i, x in self._links.items() if not x.lost and not x.told.get("leaving")}
        return [index for index in range(1, self.env.nodes) if index not in here]

    def _sort(self) -> None:
        """Put links that have said who they are in their places; strangers are shown the door."""
        guests, self._guests = [*self._guests, *self._listener.take()], []
        for link in guests:
            if "hello" not in link.told:
                self._guests += [] if link.lost else [link]
                continue
            hello = link.told["hello"] if isinstance(link.told["hello"], dict) else {}
            index = hello.get("index")
            known = hello.get("uid") == self.env.uid
            if not isinstance(index, int) or not 0 < index < self.env.nodes or not known:
                link.close()
                continue
            if index in self._links:  # its supervisor was started anew
                self._links[index].close()
            self._links[index] = link
            log.info("node=%d has come from=%s", index, link.there)


@dataclass(frozen=True, slots=True)
class Take:
    """What a generation begins with."""

    claim: Claim
    restored: int
    """Step to go on from; 0 for nothing."""


class Member:
    """A node other than 0: it comes to node 0, and comes again."""

    def __init__(self, env: Environment) -> None:
        """Remember who we are; nobody is spoken to yet."""
        self.env, self.epoch = env, 0
        self._link: Link | None = None

    def close(self) -> None:
        """Part from node 0."""
        if self._link is not None:
            self._link.close()

    def take(self, stop: StopRequest, over: Callable[[], bool]) -> Take | None:
        """Wait for the next generation; None means that the run has ended with a result.

        Args:
            stop: ends the waiting.
            over: says whether the result is in the store; asked while node 0 is not there.

        Raises:
            Unavailable: node 0 did not come in time, or a stop was asked for.
        """
        deadline, looked = time.monotonic() + self.env.rendezvous_seconds, -LOOK_SECONDS
        why = ""
        while True:
            if stop.since is not None:
                raise Unavailable("stopped on request before the workers were started")
            link = self._link
            if link is None or link.lost:
                if time.monotonic() - looked > LOOK_SECONDS:
                    if over():
                        return None
                    looked = time.monotonic()
                why = self._reach() or why
            elif link.told.get("end"):
                return None
            elif (take := _parsed(link.told.get("take"))) and take.claim.epoch > self.epoch:
                self.epoch = take.claim.epoch
                return take
            else:  # it restores and stages; should it end, the link does
                deadline = time.monotonic() + self.env.rendezvous_seconds
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"rendezvous: node 0 ({self.env.master}) did not begin within "
                    f"{self.env.rendezvous_seconds:.0f} s{why and ': '}{why}"
                )
            time.sleep(POLL_SECONDS)

    def _reach(self) -> str:
        """Try once to connect; return why it cannot be."""
        try:
            self._link = connect(self.env.master, self.env.master_port, CONNECT_SECONDS)
        except OSError as error:
            time.sleep(RETRY_SECONDS)
            return error.strerror or str(error)
        self._link.tell(hello={"index": self.env.index, "uid": self.env.uid})
        return ""

    def go(self, stop: StopRequest) -> Master:
        """Say that this node is ready; wait for the word, and return where the master listens.

        Raises:
            Lost: the generation is over.
            Unavailable: a stop was asked for.
        """
        self.tell(ready=self.epoch)
        while True:
            self.check()
            go = self.link.told.get("go")
            if isinstance(go, dict) and go["epoch"] == self.epoch:
                return Master(str(go["host"]), int(go["port"]))
            if stop.since is not None:
                raise Unavailable("stopped on request before the workers were started")
            time.sleep(POLL_SECONDS)

    @property
    def link(self) -> Link:
        """The link to node 0; there is one once a generation was taken."""
        assert self._link is not None
        return self._link

    def tell(self, **subjects: object) -> None:
        """Tell node 0."""
        self.link.tell(**subjects)

    def said(self, word: str) -> bool:
        """Say whether node 0 has said the word in this generation."""
        return bool(self.link.told.get(word) == self.epoch)

    def ended(self) -> bool:
        """Say whether node 0 has told of the run's success."""
        return bool(self.link.told.get("end"))

    def check(self) -> None:
        """Make sure that this generation goes on.

        Raises:
            Lost: it does not.
        """
        if self.link.lost:
            raise Lost(f"node 0: {self.link.why_lost}")
        take = _parsed(self.link.told.get("take"))
        if self.said("again") or take is None or take.claim.epoch != self.epoch:
            raise Lost("node 0: begins anew")

    def listen(self) -> None:
        """Do as `Head.listen`."""
        _listen(self.check, lambda: [self.link])


def _parsed(take: Any) -> Take | None:
    if take is None:
        return None
    return Take(Claim(**take["claim"]), int(take["restored"]))


def _listen(check: Callable[[], None], links: Callable[[], Iterable[Link]]) -> None:
    """Check until every link has spoken well after now: a machine that is gone says nothing."""
    until = time.monotonic() + BLAME_SECONDS
    while time.monotonic() < until or any(link.heard < until - BLAME_SECONDS for link in links()):
        check()
        time.sleep(POLL_SECONDS)
