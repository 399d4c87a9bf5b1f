"""Owns how the workers of a node wait for each other before the first step: files, no framework.

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


@dataclass(frozen=True, slots=True)
class Gang:
    """All workers of a run, seen from one of them."""

    work: Path
    worker: Worker

    @classmethod
    def of(cls, env: Environment, worker: Worker) -> Gang:
        """Return the gang of this attempt."""
        return cls(env.work, worker)

    def share(self, count: int) -> range:
        """Return which of `count` things are this worker's."""
        return range(self.worker.rank, count, self.worker.world)

    def go_on(self) -> None:
        """Tell the supervisor that this worker is alive; call it between two pieces of work.

        Raises:
            Stopped: a stop was asked for.
        """
        outbox = Outbox(self.work)
        if outbox.stop.exists():
            raise Stopped("stopped before the first step")
        outbox.beat(self.worker.rank)

    def exchange(self, what: str, value: object) -> list[Any]:
        """Tell `value` (JSON) and return what every worker has told, in order of rank.

        Raises:
            Stopped: another worker was asked to stop before it told anything.
        """
        outbox = Outbox(self.work)
        paths = [self.work / "encoded" / f"{what}-{rank}.json" for rank in range(self.worker.world)]
        write_whole(paths[self.worker.rank], json.dumps(value).encode())
        # A worker that dies takes the others with it (msrun), so the wait needs no end of its own.
        while not all(path.exists() for path in paths):
            if outbox.ended():
                raise Stopped("stopped before the first step")
            time.sleep(POLL_SECONDS)
            outbox.beat(self.worker.rank)
        return [json.loads(path.read_bytes()) for path in paths]

    def gather(self, what: str, mine: list[Any], count: int) -> list[Any]:
        """Return `count` values in order, of which this worker has computed `share(count)`."""
        found: list[Any] = [None] * count
        for rank, part in enumerate(self.exchange(what, mine)):
            found[rank :: self.worker.world] = part
        return found
