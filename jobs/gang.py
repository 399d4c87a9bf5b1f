"""Owns how the workers of a node wait for each other before the first step: files, no framework.

Nodes do not wait for each other here: each begins at another place, and finds in the store's cache
what the others have put there meanwhile.

    <work>/encoded/<what>-<rank>.json     what a worker tells the others, appears whole

The attempt's folder is empty at its start. Must not know what is shared out.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.environment import Environment, Worker
from jobs.errors import Stopped
from jobs.outbox import Outbox, write_whole

POLL_SECONDS = 0.1
TOO_EARLY = "stopped before the first step"
"""A worker's words at a stop that the other nodes' workers do not hear of."""


@dataclass(frozen=True, slots=True)
class Gang:
    """All workers of a node, seen from one of them."""

    work: Path
    worker: Worker
    nodes: int = 1

    @classmethod
    def of(cls, env: Environment, worker: Worker) -> Gang:
        """Return the gang of this attempt."""
        return cls(env.work, worker, env.nodes)

    @property
    def ranks(self) -> range:
        """The ranks of this node."""
        size = self.worker.world // self.nodes
        first = self.worker.rank // size * size
        return range(first, first + size)

    def share(self, count: int) -> list[int]:
        """Return which of `count` things are this worker's, in the order to do them."""
        return self._share(self.worker.rank, count)

    def _share(self, rank: int, count: int) -> list[int]:
        ranks = self.ranks
        mine = list(range(rank - ranks.start, count, len(ranks)))
        begin = len(mine) * (ranks.start // len(ranks)) // self.nodes
        return mine[begin:] + mine[:begin]

    def go_on(self) -> None:
        """Tell the supervisor that this worker is alive; call it between two pieces of work.

        Raises:
            Stopped: a stop was asked for.
        """
        outbox = Outbox(self.work)
        if outbox.stop.exists():
            raise Stopped(TOO_EARLY)
        outbox.beat(self.worker.rank)

    def exchange(self, what: str, value: object) -> list[Any]:
        """Tell `value` (JSON) and return what every worker of the node has told, by rank.

        Raises:
            Stopped: another worker was asked to stop before it told anything.
        """
        outbox = Outbox(self.work)
        paths = {rank: self.work / "encoded" / f"{what}-{rank}.json" for rank in self.ranks}
        write_whole(paths[self.worker.rank], json.dumps(value).encode())
        # A worker that dies takes the others with it (msrun), so the wait needs no end of its own.
        while not all(path.exists() for path in paths.values()):
            if outbox.ended():
                raise Stopped(TOO_EARLY)
            time.sleep(POLL_SECONDS)
            outbox.beat(self.worker.rank)
        return [json.loads(path.read_bytes()) for path in paths.values()]

    def gather(self, what: str, mine: list[Any], count: int) -> list[Any]:
        """Return `count` values in order, of which this worker has computed `share(count)`."""
        found: list[Any] = [None] * count
        for rank, part in zip(self.ranks, self.exchange(what, mine), strict=True):
            for index, value in zip(self._share(rank, count), part, strict=True):
                found[index] = value
        return found
