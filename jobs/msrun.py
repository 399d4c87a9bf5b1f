"""Owns msrun: its command line, its process tree, its workers' logs, what its end means.

Must not decide the fate of a run. Why it is wrapped at all: msrun has no SIGTERM handler, turns
every failure into exit 1, starts workers in sessions of their own and overwrites their logs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from jobs.environment import Environment

_DIED = re.compile(rb"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_PR_SET_PDEATHSIG = 1
"""prctl(2): signal this process when its parent ends."""


SUPERVISOR = "JOB_SUPERVISOR"
"""Environment variable with the supervisor's pid, for the workers below msrun."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, so that kill -9 leaves nothing."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_supervisor() -> None:
    """Ask the same for a worker, and end at once if msrun is gone before the kernel was asked."""
    die_with_parent()
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is not None and _parent(os.getppid()) != int(supervisor):
        os._exit(1)


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Master:
    """Where msrun's scheduler listens: on the node whose address it is."""

    host: str
    port: int


def command(env: Environment, program: str, log_dir: Path, master: Master) -> list[str]:
    """Return the command line for `program` (train, infer) on all workers of this node.

    Only flags that MindSpore 2.5 and 2.7 both know. `--join=True`: otherwise msrun returns at
    once; `--node_rank`: otherwise RANK_ID is not exported. `--tail_worker_log` names a rank that
    does not exist: msrun's `tail` processes outlive it when it is killed. `python3` is one of the
    three words that msrun does not put a `python` before.
    """
    return [
        sys.executable, "-m", "mindspore.parallel.cluster.run",
        f"--worker_num={env.workers * env.nodes}",
        f"--local_worker_num={env.workers}",
        f"--master_addr={master.host}",
        f"--master_port={master.port}",
        f"--node_rank={env.index}",
        f"--log_dir={log_dir}",
        "--join=True",
        "--cluster_time_out=600",
        f"--tail_worker_log={env.workers * env.nodes}",
        "python3", "-u", "-m", "jobs.worker", program,
    ]  # fmt: skip


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        parent = _parent(int(entry.name))
        if parent is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


@dataclass
class Msrun:
    """A running msrun and the tree below it."""

    process: subprocess.Popen[bytes]
    console: Path

    @classmethod
    def start(
        cls,
        env: Environment,
        program: str,
        log_dir: Path,
        variables: dict[str, str],
        master: Master | None = None,
    ) -> Msrun:
        """Start msrun with its own output in `log_dir`, which must be new: it overwrites logs.

        Without a `master` this node is the only one.
        """
        log_dir.mkdir(parents=True)
        # In the store the logs of all nodes lie in one folder.
        console = log_dir / ("msrun.log" if env.index == 0 else f"msrun-{env.index}.log")
        master = master or Master("127.0.0.1", free_port())
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with console.open("wb") as out:
            process = subprocess.Popen(
                command(env, program, log_dir, master),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **variables, "PATH": path, SUPERVISOR: str(os.getpid())},
                preexec_fn=die_with_parent,
            )
        return cls(process, console)

    def failed(self) -> int | None:
        """Return the exit code of the first worker that failed, negative for a signal.

        Read from msrun's own words: it goes on to wait for its scheduler, and then exits with 1.
        """
        found = _DIED.search(self.console.read_bytes())
        return int(found.group(2)) if found else None

    def kill(self) -> None:
        """End msrun, its scheduler and its workers at once."""
        tree = descendants(self.process.pid)
        for pid in (self.process.pid, *tree):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Follower:
    """Copies the lines of the workers' logs to one stream, each with its rank before it."""

    folder: Path
    stream: TextIO
    offsets: dict[Path, int] = field(default_factory=dict)

    def copy(self, *, last: bool = False) -> None:
        """Copy what is new; whole lines only, except at the `last` time."""
        for path in sorted(self.folder.glob("worker_*.log")):
            rank = path.stem.removeprefix("worker_")
            with path.open("rb") as file:
                file.seek(self.offsets.get(path, 0))
                fresh = file.read()
            whole = fresh if last else fresh[: fresh.rfind(b"\n") + 1]
            self.offsets[path] = self.offsets.get(path, 0) + len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                if not line.startswith("[INFO] "):  # MindSpore's own; it stays in the file
                    self.stream.write(f"[{rank}] {line}\n")
        self.stream.flush()
