"""Owns runs on this machine's CPU: starts the supervisor, follows it, stops it.

The supervisor is the very program that is PID 1 in the container, in a session of its own, so it
outlives the launcher. Must not read a run's records (records.py) nor judge its spec.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobs.errors import BadData
from launcher.backends import localproc, localrun
from launcher.backends.localrun import POLL_SECONDS, Files, Record
from launcher.errors import Forbidden, NameTaken, NotFound, writing
from launcher.plan import JobPlan

PROGRAM = (sys.executable, "-m", "jobs.runtime")
_STORE = "store"
"""Not a key of the spec, and told like one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A supervisor that was just started."""

    files: Files
    resumed: bool
    offset: int
    """Where this attempt's part of console.log begins, in bytes."""
    existed: bool = False
    """Nothing was started: it is the run of an earlier submission of the same values."""


def submit(
    plan: JobPlan,
    root: Path,
    *,
    program: Sequence[str] | None = None,
    flags: str = "",
    idempotent: bool = False,
) -> Started:
    """Start the run, or go on with an unfinished one of the same name and spec.

    Args:
        plan: the run.
        root: the folder for the files of runs, as a rule the store as well; made if need be.
        program: the supervisor's command line; none means jobs.runtime.
        flags: what another verb needs to find the run, with a blank before; for hints.
        idempotent: where the run cannot be gone on with, return it if it has the same values.

    Raises:
        NameTaken: the run lives, has ended for good, or was submitted with another spec.
        Forbidden: the store cannot be written.
        Unreachable: the disk is full.
        Misconfigured: the store is no folder, or the supervisor cannot be started.
    """
    there = plan.environment["JOB_STORE"] == str(root)
    what = f"store {root}" if there else f"folder {root} of local runs"
    with writing(what, "--store names another folder" if there else "submit from another folder"):
        files = Files(root / plan.name)
        if files.run.exists():
            try:
                return _resume(plan, files, program or PROGRAM, flags)
            except NameTaken:
                if not idempotent or not _same(plan, files):
                    raise
            offset = localrun.tail(files, 0)
            return Started(files=files, resumed=False, offset=offset, existed=True)
        return _create(plan, files, program or PROGRAM)


def cancel(files: Files, *, now: bool = False) -> bool:
    """Stop the run and wait for its end; return whether there was anything to stop.

    Where the supervisor is gone, what it left behind is killed: workers can outlive it.

    Args:
        files: the run.
        now: SIGKILL to all its processes, where SIGTERM lets it commit what it has first.

    Raises:
        NotFound: no such run was submitted on this machine.
        Forbidden: the run belongs to another user.
    """
    record = localrun.read(files)
    try:
        if not localrun.alive(files):
            return _sweep(files, record.uid)
        if now:
            localproc.kill(record.uid, localproc.supervisor(files))
        elif (pid := localproc.supervisor(files)) is not None:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended by itself
    except PermissionError as error:
        raise Forbidden(f"run {record.name!r}: belongs to another user") from error
    while localrun.alive(files):
        time.sleep(POLL_SECONDS)
    return True


def _sweep(files: Files, uid: str) -> bool:
    """Kill the processes of a run without supervisor; return whether there were any."""
    if not localproc.members(uid):
        return False
    lock = _acquire_soon(files)
    if lock is None:
        return False  # somebody resumes it, who kills them first
    try:
        localproc.kill(uid)
    finally:
        os.close(lock)
    return True


def _create(plan: JobPlan, files: Files, program: Sequence[str]) -> Started:
    """Make the run's folder beside its place, move it there whole, start; or leave nothing."""
    root = files.run.parent
    record = _record(plan, uid=str(uuid.uuid4()), submitted=_now())
    with ExitStack() as undo:
        localrun.make_folders(root, undo)
        part = Path(tempfile.mkdtemp(prefix=f".part-{plan.name}-", dir=root))
        undo.callback(shutil.rmtree, part, ignore_errors=True)
        part.chmod(0o755)
        draft = Files(part)
        draft.work.mkdir(parents=True)
        draft.plan.write_bytes(record.to_bytes())
        lock = localrun.acquire(draft)
        assert lock is not None, "nobody else knows this folder"
        undo.callback(os.close, lock)
        try:
            part.rename(files.run)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise _taken(files, "was submitted at the same moment") from error
        undo.callback(shutil.rmtree, files.run, ignore_errors=True)
        offset = localproc.start(record, files, lock, program)
        undo.pop_all()
        os.close(lock)
    return Started(files=files, resumed=False, offset=offset)


def _resume(plan: JobPlan, files: Files, program: Sequence[str], flags: str) -> Started:
    """Start an unfinished run again; a failure to start leaves it as it was."""
    try:
        old = localrun.read(files)
    except NotFound as error:
        raise _taken(files, f"{files.run} exists and was not submitted from here") from error
    lock = _acquire_soon(files)
    if lock is None:
        hint = f"launcher logs {plan.name} -f{flags} follows it, launcher cancel {plan.name}{flags}"
        raise NameTaken(f"run {plan.name!r}: is running", f"{hint} ends it")
    with ExitStack() as always, ExitStack() as undo:
        always.callback(os.close, lock)
        _check_resumable(plan, files, old)
        localproc.kill(old.uid)  # workers can outlive a supervisor that was killed
        record = _record(plan, uid=old.uid, submitted=old.submitted)
        undo.callback(localrun.replace, files.plan, files.plan.read_bytes())
        localrun.replace(files.plan, record.to_bytes())
        earlier = files.local / "termination.earlier"
        if files.termination.exists():
            files.termination.rename(earlier)
            undo.callback(earlier.rename, files.termination)
        offset = localproc.start(record, files, lock, program)
        undo.pop_all()
        earlier.unlink(missing_ok=True)
    return Started(files=files, resumed=True, offset=offset)


def _check_resumable(plan: JobPlan, files: Files, old: Record) -> None:
    state = localrun.look_at_rest(files, old)
    if state.code == 0:
        raise _taken(files, "has succeeded", "only an unfinished run is gone on with")
    new = _record(plan, uid=old.uid, submitted=old.submitted)
    changes = _differences(old, new)
    forks = new.spec().get("fork") is True
    if forks and (changes or state.code == BadData.code):  # its data may be mended since
        if moved := [change for change in changes if change.startswith(_STORE)]:
            raise _taken(files, f"{moved[0]}, which --fork cannot change")
        return  # what has failed for good has failed with the values, or the data, of before
    if not state.resumable:
        mended = state.code == BadData.code and new.kind == "train"
        more = "or, once its data is mended, go on by --fork" if mended else ""
        raise _taken(files, f"has failed for good ({state.code}): {state.reason}", more)
    if changes:
        raise NameTaken(
            f"run {plan.name!r}: exists, unfinished, with other values: {'; '.join(changes)}",
            "choose another --name, repeat its values to go on with it, or change them by --fork",
        )


def _same(plan: JobPlan, files: Files) -> bool:
    """Return whether the run of that name was submitted from here, with the same values."""
    try:
        old = localrun.read(files)
    except NotFound:
        return False
    return not _differences(old, _record(plan, uid=old.uid, submitted=old.submitted))


def _differences(old: Record, new: Record) -> list[str]:
    was, now = (
        {**record.spec(), "npus": record.workers, _STORE: _elsewhere(record)}
        for record in (old, new)
    )
    return [
        f"{key} is {json.dumps(was.get(key)):.60}, not {json.dumps(now.get(key)):.60}"
        for key in sorted((was.keys() | now.keys()) - {"fork"})
        if was.get(key) != now.get(key)
    ]


def _elsewhere(record: Record) -> str:
    """Return the store of the run's records, or nothing: a folder may have been moved."""
    url = record.environment.get("JOB_STORE", "")
    return url.rstrip("/") if "://" in url and not url.startswith("file:") else ""


def _taken(files: Files, why: str, more: str = "") -> NameTaken:
    hint = "choose another --name" + (f"; {more}" if more else "")
    return NameTaken(f"run {files.run.name!r}: {why}", hint)


def _record(plan: JobPlan, *, uid: str, submitted: str) -> Record:
    return Record(
        name=plan.name,
        kind=plan.kind,
        uid=uid,
        submitted=submitted,
        workers=plan.npus,
        environment=dict(plan.environment),
    )


def _acquire_soon(files: Files) -> int | None:
    """Return the run's lock, or None if it stays taken; a glance at it takes an instant."""
    for _ in range(5):
        lock = localrun.acquire(files)
        if lock is not None:
            return lock
        time.sleep(0.05)
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
