"""Owns the files of one local run, below <store>/<run>/local/, and what they say of its state.

Must not start, signal or end a process. A run lives while its lock is held: the supervisor inherits
the locked file from the launcher that started it, and the kernel lets go when it ends, however it
ends. A process number would prove nothing, since numbers are used again.

    local/plan.json     how to start it again     local/lock      held by the living supervisor
          console.log   its stdout and stderr     local/pid       whom to signal while it is held
          termination   `<exit code> <reason>`    local/work/     its working directory
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from jobs.errors import BY_CODE, FINAL
from jobs.layout import LOCAL
from launcher.backends import RunState, State
from launcher.errors import Misconfigured, NotFound

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Files:
    """The paths of one run; none of them needs to exist."""

    run: Path

    @property
    def local(self) -> Path:
        """The folder of the files below."""
        return self.run / LOCAL

    @property
    def plan(self) -> Path:
        return self.local / "plan.json"

    @property
    def lock(self) -> Path:
        return self.local / "lock"

    @property
    def pid(self) -> Path:
        return self.local / "pid"

    @property
    def console(self) -> Path:
        return self.local / "console.log"

    @property
    def termination(self) -> Path:
        return self.local / "termination"

    @property
    def work(self) -> Path:
        return self.local / "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """plan.json: all that starting the run again takes."""

    name: str
    kind: str
    uid: str
    """Identity of the submission; stays over resumptions."""
    submitted: str
    workers: int
    environment: Mapping[str, str]
    """What the plan adds to the caller's environment; holds no credential."""

    def to_bytes(self) -> bytes:
        """Return the record as it stands in plan.json."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def spec(self) -> dict[str, object]:
        """Return the spec that the run was submitted with."""
        found = json.loads(self.environment["JOB_SPEC"])
        if not isinstance(found, dict):
            raise TypeError("JOB_SPEC is no mapping")
        return found


def read(files: Files) -> Record:
    """Return the run's record.

    Raises:
        NotFound: no such run was submitted on this machine.
        Misconfigured: plan.json is not what the launcher writes.
    """
    try:
        record = Record(**json.loads(files.plan.read_bytes()))
        _check(record)
        return record
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"run {files.run.name!r}: no such run in {files.run.parent}",
            "launcher list shows the runs; --store names another place",
        ) from error
    except OSError as error:
        raise Misconfigured(f"{files.plan}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Misconfigured(
            f"{files.plan}: is not a record of this launcher",
            f"move {files.run} away, or submit under another --name",
        ) from error


def _check(record: Record) -> None:
    """Check what later readers rely on; the spec itself may be an older version's.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: something is not as it is written.
    """
    texts = [record.name, record.kind, record.uid, record.submitted, *record.environment.values()]
    spec = record.spec()
    numbers = [record.workers, spec.get("steps", 1), spec.get("images", 1)]
    if not all(isinstance(text, str) for text in texts) or not record.uid:
        raise TypeError("not a text")
    if not all(type(number) is int for number in numbers):
        raise TypeError("not a whole number")
    prompts = spec.get("prompts", [])
    if isinstance(prompts, dict):
        key = PurePosixPath(prompts["key"])
        if key.is_absolute() or ".." in key.parts or not key.parts or str(key) != prompts["key"]:
            raise ValueError("not a key of the store")
    elif not isinstance(prompts, list):
        raise TypeError("not a list of prompts")


def everyone(root: Path) -> Iterator[Files]:
    """Yield the files of every run of the store that was submitted locally."""
    try:
        places = sorted(root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for place in places:
        # A dot marks a submission that is still being written.
        if not place.name.startswith(".") and Files(place).plan.is_file():
            yield Files(place)


def acquire(files: Files) -> int | None:
    """Return a descriptor that holds the run's lock, or None while the run lives."""
    handle = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def alive(files: Files) -> bool:
    """Return whether the supervisor lives."""
    try:
        handle = os.open(files.lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at once don't take each other for the supervisor.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def ending(files: Files) -> tuple[int, str] | None:
    """Return exit code and reason of the attempt that ended last, or None if it left none.

    The reason is told without the name of its code, with which the supervisor begins it.
    """
    try:
        text = files.termination.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    code, _, reason = text.partition(" ")
    if not code.isdecimal():
        return 1, text
    row = BY_CODE.get(int(code))
    return int(code), reason.removeprefix(f"{row.name}: ") if row else reason


def look(files: Files) -> RunState:
    """Return what the files say of the run.

    Raises:
        NotFound: no such run was submitted on this machine.
    """
    record = read(files)
    # The lock first: whoever finds it free finds the termination message complete.
    return _described(record, None if alive(files) else files)


def look_at_rest(files: Files, record: Record) -> RunState:
    """Return the same to a caller who holds the lock, which `look` would take for the run's."""
    return _described(record, files)


def make_folders(folder: Path, undo: ExitStack) -> None:
    """Make a folder and its parents; `undo` removes again what is made and still empty.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        undo.callback(_remove_empty, place)
    folder.mkdir(exist_ok=True)  # refuses a file


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # somebody else has put something there
        folder.rmdir()


def replace(path: Path, data: bytes) -> None:
    """Write a file that a reader sees whole: the old one or the new one."""
    part = path.with_name(f".part-{path.name}")
    part.write_bytes(data)
    part.replace(path)


def log(files: Files, offset: int = 0, *, follow: bool = False) -> Iterator[bytes]:
    """Yield what the run's supervisor wrote, from `offset` on; with `follow` until it ends.

    Raises:
        NotFound: the run has no log.
    """
    try:
        handle = files.console.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"run {files.run.name!r}: has no log") from error
    with handle:
        handle.seek(offset)
        while True:
            # Asked before reading: what a run wrote before its end is read after it.
            last = not follow or not alive(files)
            while chunk := handle.read(1 << 16):
                yield chunk
            if last:
                return
            time.sleep(POLL_SECONDS)


def tail(files: Files, lines: int) -> int:
    """Return the offset in console.log at which its last `lines` lines begin."""
    kept: deque[int] = deque(maxlen=lines)
    total = 0
    try:
        with files.console.open("rb") as handle:
            for line in handle:
                kept.append(len(line))
                total += len(line)
    except FileNotFoundError:
        return 0
    return total - sum(kept)


def _described(record: Record, at_rest: Files | None) -> RunState:
    code, reason = (at_rest and ending(at_rest)) or (None, "")
    return RunState(
        name=record.name,
        kind=record.kind,
        state=_state(at_rest is None, code),
        code=code,
        reason=reason,
        submitted=record.submitted,
        resumable=at_rest is not None and code != 0 and code not in FINAL,
    )


def _state(living: bool, code: int | None) -> State:
    if living:
        return "running"
    if code is None:
        return "interrupted"
    if code == 0:
        return "succeeded"
    row = BY_CODE.get(code)
    return "stopped" if row and row.retry == "free" else "failed"
