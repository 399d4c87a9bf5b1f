"""Owns the start and the end of a worker process: framework up, program run, reason left behind.

Must not know what the program does. msrun turns every failure into exit 1, so the exit code and
the reason go to the outbox.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from jobs import compat, specs
from jobs.environment import Environment, Worker, log_to_stdout
from jobs.errors import JobError, Stopped, planned
from jobs.outbox import Outbox

log = logging.getLogger("jobs.worker")
Program = Callable[[Environment, Any, Worker], None]


def main(program: str) -> int:
    """Run `jobs.train` or `jobs.infer` in this process and return its exit code."""
    env = Environment.read()
    worker = compat.start(env, group=program == "train")  # pictures are each worker's own
    # Rank 0 tells the story; the others speak when something is wrong.
    log_to_stdout(logging.INFO if worker.rank == 0 else logging.WARNING)
    try:
        spec = specs.parse_json(env.spec)
        load(program)(env, spec, worker)
    except Exception as error:
        known = planned(error, env.work)
        if known is None:
            raise
        return leave(env, worker, known)
    Outbox(env.work).end(worker.rank)
    return 0


def load(program: str) -> Program:
    """Return the `run` of a worker program; imported late, since it imports the framework."""
    if program == "train":
        from jobs.train import run
    else:
        from jobs.infer import run  # type: ignore[assignment]
    return run


def leave(env: Environment, worker: Worker, error: JobError) -> int:
    """Leave the reason for the supervisor; a worker that was asked to stop has not failed.

    It ends with 0: at any other code msrun would kill rank 0, which may still be saving.
    """
    log.log(logging.INFO if isinstance(error, Stopped) else logging.ERROR, "%s", error)
    with contextlib.suppress(OSError):  # a full disk takes no reason; the exit code speaks then
        Outbox(env.work).fail(worker.rank, error.code, str(error))
    if isinstance(error, Stopped):
        Outbox(env.work).end(worker.rank)
        return 0
    return error.code


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1]))
