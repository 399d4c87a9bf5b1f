"""Owns the processes of a local run: starts the supervisor, finds and kills what belongs to it.

Must not decide whether a run may be started (local.py).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher import storage
from launcher.backends import localrun
from launcher.backends.localrun import POLL_SECONDS, Files, Record


def start(record: Record, files: Files, lock: int, program: Sequence[str]) -> int:
    """Start the supervisor and return where its part of console.log begins, in bytes.

    It inherits `lock`, and so holds it for as long as it lives.
    """
    # A launcher that itself runs in a job must not hand that job's variables on.
    caller = {name: value for name, value in os.environ.items() if not name.startswith("JOB_")}
    ours = {
        "JOB_UID": record.uid,
        "JOB_CLUSTER": socket.gethostname(),
        "JOB_NAMESPACE": "",
        "JOB_COMPLETION_INDEX": "0",
        "JOB_WORK": str(files.work),
        # Models and data sets from object storage: fetched once, whatever run needs them.
        "JOB_CACHE": str(storage.cache("staged")),
        "TERMINATION_LOG": str(files.termination),
        "PYTHONUNBUFFERED": "1",
    }
    files.pid.unlink(missing_ok=True)
    files.work.mkdir(exist_ok=True)
    with files.console.open("ab") as console:
        offset = console.tell()
        # In its own folder: `python -m` would take a `jobs` of the caller's folder for ours.
        process = subprocess.Popen(
            [*program],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=files.work,
            env={**caller, **record.environment, **ours},
            start_new_session=True,
            pass_fds=(lock,),
        )
    try:
        localrun.replace(files.pid, f"{process.pid}\n".encode())
    except BaseException:
        kill(record.uid, process.pid)
        process.wait()
        raise
    return offset


def supervisor(files: Files) -> int | None:
    """Return whom to signal; it is written a moment after the start, and stale after the end."""
    while localrun.alive(files):
        try:
            return int(files.pid.read_text())
        except (FileNotFoundError, ValueError):
            time.sleep(POLL_SECONDS)
    return None


def kill(uid: str, *pids: int | None) -> None:
    """SIGKILL every process of a submission until none is left."""
    doomed = {pid for pid in pids if pid is not None} | members(uid)
    while doomed:
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
        doomed = members(uid)  # one of them may have forked meanwhile


def members(uid: str) -> set[int]:
    """Return the processes of a submission, told by the environment they inherit.

    msrun starts workers in sessions of their own, and they lose their parent when it is killed, so
    neither groups nor ancestry find them all. Linux only; elsewhere nobody is found.
    """
    mark = f"JOB_UID={uid}".encode()
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.add(int(place.name))
    return found - {os.getpid()}
