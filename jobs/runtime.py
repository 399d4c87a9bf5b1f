"""PID 1 of a job: environment in, exit code out, signals, termination message.

Restores from the store, runs the workers under msrun and the uploader beside them, and ends with
0 only after the results are committed and verified. Must not import MindSpore.
"""

from __future__ import annotations

from jobs.stopping import StopRequest, heed

STOP = heed() if __name__ == "__main__" else None
"""Before all that takes time to import: what comes earlier, PID 1 never hears of."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from jobs import cgroups, console, several, shares, specs, versions
from jobs.attempt import Attempt, prepare
from jobs.environment import Environment, log_to_stdout
from jobs.errors import BY_CODE, JobError, planned
from jobs.peers import Lost
from jobs.verdict import tell_end
from jobs.working import ALONE, World, work

log = logging.getLogger("jobs.runtime")


def run(env: Environment, spec: specs.Spec, stop: StopRequest) -> None:
    """Do one attempt from restore to verified results, and leave in the store how it ended.

    Raises:
        JobError: the attempt failed, or was stopped.
    """
    if env.nodes == 1:
        attempted(prepare(env, spec, stop), ALONE)
    elif spec.kind == "infer":
        shares.run(env, spec, stop, attempted)
    else:
        several.run(env, spec, stop, attempted)


def attempted(attempt: Attempt, world: World) -> None:
    """Do the attempt, and leave in the store how it ended.

    Raises:
        JobError: it failed, or was stopped.
        Lost: another node is gone; nothing is left, since the run goes on.
    """
    try:
        if world.finished(attempt):
            log.info("result=present; nothing is left to do")
        else:
            work(attempt, world)
    except Lost:
        raise
    except Exception as error:
        tell_end(attempt, *ending(error))
        raise
    tell_end(attempt, *ending(None))


def ending(error: Exception | None) -> tuple[int, str]:
    """Return the exit code and the reason, one line, of an attempt that ended with `error`."""
    if error is None:
        return 0, "results are committed and verified"
    known = planned(error, os.environ.get("JOB_WORK"))
    known = known or JobError(f"{type(error).__name__}: {error}")
    return known.code, f"{BY_CODE[known.code].name}: {known}".replace("\n", " ")


def terminate(log_file: str | None, code: int, reason: str) -> None:
    """Leave the reason where Kubernetes and `launcher status` read it: `<code> <reason>`."""
    if not log_file:
        return
    # The kubelet keeps 4,096 bytes of the message.
    line = f"{code} {reason}"[:4000]
    with contextlib.suppress(OSError):
        Path(log_file).write_text(line + "\n", encoding="utf-8")


def main() -> int:
    """Run as `python -m jobs.runtime`; every planned failure is one line and its exit code."""
    log_to_stdout()
    if line := console.first_line(os.environ):
        log.info("%s", line)
    stop = STOP or heed()
    log_file = os.environ.get("TERMINATION_LOG")
    try:
        env = Environment.read()
        spec = specs.parse_json(env.spec)
        digest = hashlib.sha256(env.spec.encode()).hexdigest()[:16]
        told = " ".join(f"{name}={number}" for name, number in versions.all_there().items())
        log.info("%s run=%s kind=%s spec=%s", told, env.run, spec.kind, digest)
        run(env, spec, stop)
        code, reason = ending(None)
    except Exception as error:
        if planned(error, os.environ.get("JOB_WORK")) is None:
            log.exception("bug")
        code, reason = ending(error)
    if memory := str(cgroups.read()):
        log.info("memory=%r", memory)
    (log.info if code == 0 else log.error)("exit=%d %s", code, reason)
    terminate(log_file, code, reason)
    return code


if __name__ == "__main__":
    raise SystemExit(console.recorded(main))
