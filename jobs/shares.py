"""Owns a painting over several nodes as each node lives it: every one paints its share alone.

No node waits for another or knows who works: a lost one is replaced, and goes on with its own
share. Each leaves its part of the result in the store; who finds all parts there makes the whole.
Must not know how workers are run (working.py) nor what a picture is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from jobs import commits, layout, specs
from jobs.attempt import Attempt, patiently, prepare
from jobs.environment import Environment
from jobs.errors import BadData
from jobs.results import finished, has_part, has_result, part_of
from jobs.rows import gather
from jobs.stopping import StopRequest
from jobs.sync import abort_uploads
from jobs.uploading import Uploading
from jobs.verdict import conclude, forget_end, judge, painted
from jobs.working import Alone, World, hand_in

log = logging.getLogger("jobs.shares")


def run(
    env: Environment,
    spec: specs.InferSpec,
    stop: StopRequest,
    attempted: Callable[[Attempt, World], None],
) -> None:
    """Do this node's share of the run until it is verified.

    Raises:
        JobError: this node failed, or was stopped; the others go on.
    """
    attempt = prepare(env, spec, stop)
    patiently(env, stop, layout.END, lambda: forget_end(attempt))
    attempted(attempt, Sharing(env.nodes))


class Sharing(Alone):
    """The world of a node that paints its share."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def finished(self, attempt: Attempt) -> bool:
        """Look for the result, or this node's part of it.

        The attempt before may have ended between its part and the whole, which is made now.

        Raises:
            JobError: see `unite`.
        """
        if has_part(attempt):
            self.unite(attempt)
        return finished(attempt)

    def finish(self, attempt: Attempt, uploader: Uploading, ended: int) -> None:
        """Hand in this node's part, and the whole where it was the last.

        Raises:
            JobError: the attempt failed, or was stopped.
        """
        if ended == 0:
            conclude(attempt)
        hand_in(attempt, uploader)
        if has_part(attempt):
            self.unite(attempt)
        judge(attempt, ended)

    def unite(self, attempt: Attempt) -> None:
        """Make the result of all nodes' parts, if they are there; two may do so, and alike.

        Raises:
            BadData: a picture's row is gone from the store.
            JobError: the store was away past the deadline.
        """
        patiently(attempt.env, attempt.stop, layout.RESULT, lambda: self._united(attempt))

    def _united(self, attempt: Attempt) -> None:
        store, name = attempt.store, attempt.env.run
        found = {node: part_of(attempt, node) for node in range(self.nodes)}
        if missing := [str(node) for node, part in found.items() if part is None]:
            log.info("part=handed-in waits-for=%s", ",".join(missing))
            return
        if has_result(attempt):
            return
        rows, parts = gather(store, name), [part for part in found.values() if part is not None]
        result = painted(name, [row for part in parts for row in part["summaries"]])
        if len(rows) != result["pictures"]:
            told = f"{len(rows)} rows of {result['pictures']} pictures"
            raise BadData(
                f"{layout.PICTURES}: {told}: somebody removed the others from the store; submit "
                "under another name"
            )
        split = result["split_s"]
        assert isinstance(split, dict)
        split["upload"] = round(sum(part["upload_s"] for part in parts) / len(parts), 2)
        abort_uploads(store, name, attempt.outbox)
        key = layout.key(name, layout.RESULT)
        commits.compare(store, key, {key: store.write(key, json.dumps(result, indent=1).encode())})
