"""PID 1 of a job: environment in, exit code out, signals, stall watch, termination message.

Restores from the store, runs the workers under msrun and the uploader beside them, and ends with
0 only after the results are committed and verified. Must not import MindSpore.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from jobs import __version__, console, specs
from jobs.attempt import Attempt, StopRequest, finished, patiently, prepare
from jobs.environment import Environment, log_to_stdout
from jobs.errors import BY_CODE, JobError, Stalled, Unavailable, planned
from jobs.msrun import Follower, Msrun
from jobs.staging import KEYS, stage
from jobs.uploading import Uploading, upload_seconds
from jobs.verdict import conclude, judge, raise_reasons, tell_end

log = logging.getLogger("jobs.runtime")

POLL_SECONDS = 0.2
LINGER_SECONDS = {"CPU": 0.0, "Ascend": 60.0}
"""How long workers that have handed over everything may take to leave their group: on CPU that
is 10 s of polite waiting with nothing to release."""
CANN_VERSION_FILES = (
    Path("/usr/local/Ascend/ascend-toolkit/latest/version.cfg"),
    Path("/usr/local/Ascend/cann/version.cfg"),
)


def versions() -> str:
    """Return `name=version` of all that decides a result; absent parts are left out."""
    found = [f"jobs={__version__}"]
    for package in ("mindspore", "mindone"):
        try:
            found.append(f"{package}={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    for path in CANN_VERSION_FILES:
        if path.is_file():
            numbers = re.findall(
                r"\[([^\]]+)\]", path.read_text(encoding="utf-8", errors="replace")
            )
            found += [f"cann={numbers[-1]}"] if numbers else []
            break
    return " ".join(found)


def watch(attempt: Attempt, workers: Msrun, uploader: Uploading) -> int:
    """Follow the workers until they end; return msrun's exit code, or the failed worker's.

    Raises:
        Stalled: a worker was silent past the limit; all are killed.
        JobError: the uploader gave up; the workers are killed, for their work cannot be kept.
    """
    follower = Follower(attempt.logs, sys.stdout)
    limit: float | None = None
    ended_at: float | None = None
    try:
        while workers.process.poll() is None:
            if ended_at is None and len(attempt.outbox.ended()) == attempt.env.workers:
                ended_at = time.monotonic()
            if ended_at and time.monotonic() - ended_at >= LINGER_SECONDS[attempt.env.device]:
                return 0
            time.sleep(POLL_SECONDS)
            follower.copy()
            failed = workers.failed()
            if failed is not None:
                return failed
            uploader.check()
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


def run(env: Environment, spec: specs.Spec, stop: StopRequest) -> None:
    """Do one attempt from restore to verified results, and leave in the store how it ended.

    Raises:
        JobError: the attempt failed, or was stopped.
    """
    attempt = prepare(env, spec, stop)
    try:
        if finished(attempt):
            log.info("result=present; nothing is left to do")
        else:
            work(attempt)
    except Exception as error:
        tell_end(attempt, *ending(error))
        raise
    tell_end(attempt, *ending(None))


def work(attempt: Attempt) -> None:
    """Do what the run still lacks.

    Raises:
        JobError: the attempt failed, or was stopped.
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
    uploader = Uploading(attempt)
    try:
        workers = Msrun.start(env, spec.kind, attempt.logs, quiet)
        ended = watch(attempt, workers, uploader)
        if ended == 0:
            conclude(attempt)
        try:
            uploader.drain()
        except JobError:
            raise_reasons(attempt)
            raise
        judge(attempt, ended)
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
    stop = StopRequest()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.since is None:
            stop.since = time.monotonic()
            log.warning("signal=%s; checkpoint and stop", signal.Signals(number).name)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    log_file = os.environ.get("TERMINATION_LOG")
    try:
        env = Environment.read()
        spec = specs.parse_json(env.spec)
        digest = hashlib.sha256(env.spec.encode()).hexdigest()[:16]
        log.info("%s run=%s kind=%s spec=%s", versions(), env.run, spec.kind, digest)
        run(env, spec, stop)
        code, reason = ending(None)
    except Exception as error:
        if planned(error, os.environ.get("JOB_WORK")) is None:
            log.exception("bug")
        code, reason = ending(error)
    (log.info if code == 0 else log.error)("exit=%d %s", code, reason)
    terminate(log_file, code, reason)
    return code


if __name__ == "__main__":
    raise SystemExit(console.recorded(main))
