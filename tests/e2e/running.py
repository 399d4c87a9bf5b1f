"""A run on real nodes, seen from this machine, on which its containers' processes are."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import layout

NODES, NPUS = 2, 2
SAVE_EVERY = 20
SPEC = (
    "--model", "tiny", "--data", "tiny", "--save-every", f"{SAVE_EVERY}", "--set", "log_every=1",
    "--set", "validation_prompts=[]", "--set", "batch_size=1",
)  # fmt: skip
TWO = ("submit", "train", "--npus", str(NPUS), "--nodes", str(NODES), *SPEC, "--steps", "100")
ONE = ("submit", "train", "--npus", "1", *SPEC, "--steps", "500")
"""Half a minute of steps each, so that there is time for something to happen."""
Change = Callable[[Any, Any], None]
"""Changes the spec of a Job and its main container, as an administrator may."""


def alive(pid: int) -> bool:
    """Say whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: str, ask: Callable[[], Any], seconds: float = 600) -> Any:
    """Return the first true answer."""
    until = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.3)
    return found


class Run:
    """A run on the cluster, seen from this machine, on which its containers' processes are."""

    def __init__(
        self, nodes: Any, name: str, words: tuple[str, ...] = TWO, change: Change | None = None
    ) -> None:
        self.nodes, self.name, self.words = nodes, name, words
        self.store = nodes.bucket / "e2e" / name
        self.seen = 0
        """The newest step that was known to be committed before something happened."""
        if change is None:
            nodes.launch(*words, "--name", name)
        else:
            nodes.create(name, *words, change=change)

    def committed(self) -> int:
        found = [
            layout.step_of(path.parent.name)
            for path in (self.store / layout.CHECKPOINTS).glob("*/COMMITTED")
        ]
        return max((step for step in found if step is not None), default=0)

    def train_on(self, more: int = 1) -> int:
        """Wait until there are that many more commits; return the newest step."""
        want = self.committed() + more * SAVE_EVERY
        wait_for(f"a commit of step {want}", lambda: self.committed() >= want)
        self.seen = self.committed()
        return self.seen

    def processes(self, program: str, index: int) -> list[int]:
        """Return the processes of one pod that run a module of ours or of MindSpore's."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                variables = (entry / "environ").read_bytes().split(b"\0")
            except (OSError, ValueError):
                continue
            own = {f"JOB_RUN={self.name}".encode(), f"JOB_COMPLETION_INDEX={index}".encode()}
            if program.encode() in words and own <= set(variables):
                found.append(int(entry.name))
        return sorted(found)

    def kill(self, program: str, index: int) -> None:
        """Kill the last one: of two workers that of the higher rank."""
        os.kill(self.processes(program, index)[-1], signal.SIGKILL)

    def uid(self, index: int) -> str:
        """Return the uid of the newest pod of an index: failed ones stay beside it."""
        label = "batch.kubernetes.io/job-completion-index"
        rows = [row["metadata"] for row in self.nodes.pods(self.name)]
        mine = [row for row in rows if row["labels"][label] == str(index)]
        return max(mine, key=lambda row: row["creationTimestamp"])["uid"] if mine else ""

    def end(self, seconds: float = 1200) -> dict[str, Any]:
        """Wait for success; return what `status` says."""
        self.tell()
        self.nodes.launch("logs", self.name, "-f", seconds=seconds)
        found = self.tell()
        assert found["state"] == "succeeded", found
        return found

    def resumed(self, *, stopped: bool = False) -> None:
        """Make sure that the newest attempt went on from what was committed, at least.

        A run that begins anew ends with the same bits: only the log tells.

        Args:
            stopped: whether a pod was told to stop, and has committed what it had first.
        """
        text = self.nodes.launch("logs", self.name)
        found = re.findall(r"attempt=(\d+) restored=(\d+)", text)
        attempts = {int(attempt): int(step) for attempt, step in found}
        assert len(attempts) > 1, found
        assert attempts[max(attempts)] >= self.seen > 0, found
        assert not stopped or re.search(r"signal=SIGTERM.*exit=75 ", text, re.S), text[-3000:]

    def failures(self, index: int) -> tuple[int, int]:
        """Return how many pods of an index have failed, counted and not, before its newest one."""
        prefix = "batch.kubernetes.io/job-index-"
        rows = {row["metadata"]["uid"]: row["metadata"] for row in self.nodes.pods(self.name)}
        marks = rows[self.uid(index)]["annotations"]
        counted, ignored = (
            int(marks.get(f"{prefix}{kind}-count", 0)) for kind in ("failure", "ignored-failure")
        )
        return counted, ignored

    def tell(self) -> dict[str, Any]:
        """Return what `status` says, and print it."""
        found: dict[str, Any] = self.nodes.status(self.name)
        print(f"{self.name}: {found['state']}: {found.get('reason')}")
        return found

    def says(self, *words: str, seconds: float = 300) -> dict[str, Any]:
        """Wait until `status` says all the words, in any of its fields; return and print it."""

        def found() -> dict[str, Any] | None:
            status: dict[str, Any] = self.nodes.status(self.name)
            return status if all(word in str(status) for word in words) else None

        try:
            status: dict[str, Any] = wait_for(f"status with {words}", found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.nodes.status(self.name)}") from None
        print(f"{self.name}: {status['state']}: {status.get('reason')}; {status.get('next')}")
        return status

    def work(self, index: int) -> Path:
        """Return the folder of this machine that is the pod's /scratch."""
        uid = self.uid(index)
        [path] = self.nodes.state.resolve().glob(
            f"node-*/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/work"
        )
        return Path(path)

    def state(self) -> str:
        folder = self.store / layout.CHECKPOINTS / layout.step_name(int(self.words[-1]))
        return hashlib.sha256((folder / "state.safetensors").read_bytes()).hexdigest()


class Calm(dict[tuple[str, ...], str]):
    """The final state of an undisturbed run, by the words that submit it; made when asked for."""

    def __init__(self, nodes: Any) -> None:
        super().__init__()
        self.nodes = nodes

    def __missing__(self, words: tuple[str, ...]) -> str:
        run = Run(self.nodes, f"calm-{len(self)}", words)
        run.end()
        self[words] = run.state()
        return self[words]
