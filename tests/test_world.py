"""Several nodes: real supervisors, msrun and MindSpore, each node a process tree of this machine.

msrun starts its scheduler where `ip` lists the master's address; here every node has all addresses,
so that the nodes other than 0 find an `ip` on their PATH that lists none.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs import layout
from jobs.links import LOST_SECONDS
from jobs.msrun import descendants, free_port

pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, SAVE_EVERY = 60, 5
SPEC = {
    "kind": "train", "model": "tiny", "data": "tiny", "precision": "fp32", "resolution": 128,
    "steps": STEPS, "save_every": SAVE_EVERY, "log_every": 1, "validation_prompts": [],
    "keep_last": 2,
}  # fmt: skip


class Run:
    """A run of two nodes with one worker each."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.port = folder, name, free_port()
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.started = 0

    def start(self, index: int) -> None:
        """Start the supervisor of a node in a work directory of its own, as a new pod has."""
        self.started += 1
        work = self.folder / f"{self.name}-{index}-{self.started}"
        work.mkdir()
        path = os.environ["PATH"]
        if index:
            program = work / "bin" / "ip"
            program.parent.mkdir()
            program.write_text("#!/bin/sh\necho '[]'\n")
            program.chmod(0o755)
            path = f"{program.parent}{os.pathsep}{path}"
        variables = {
            "JOB_SPEC": json.dumps(SPEC), "JOB_RUN": self.name, "JOB_UID": f"u-{self.name}",
            "JOB_STORE": f"file://{self.folder}/store", "JOB_WORK": str(work),
            "JOB_DEVICE": "CPU", "JOB_WORKERS": "1", "JOB_NODES": "2", "JOB_THREADS": "1",
            "JOB_COMPLETION_INDEX": str(index), "JOB_MASTER": "localhost",
            "JOB_MASTER_PORT": str(self.port), "JOB_RENDEZVOUS_SECONDS": "120",
            "JOB_GRACE_SECONDS": "60", "TERMINATION_LOG": str(work / "termination"), "PATH": path,
        }  # fmt: skip
        with (work / "console.log").open("wb") as out:
            self.nodes[index] = subprocess.Popen(
                [sys.executable, "-m", "jobs.runtime"], env={**os.environ, **variables},
                cwd=work, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.nodes[index].work = work  # type: ignore[attr-defined]

    def said(self, index: int) -> str:
        return (self.nodes[index].work / "console.log").read_text()  # type: ignore[attr-defined]

    def reason(self, index: int) -> str:
        return (self.nodes[index].work / "termination").read_text()  # type: ignore[attr-defined]

    def kill(self, index: int) -> None:
        """Kill a node's whole tree, as a machine that is switched off."""
        process = self.nodes[index]
        for pid in (process.pid, *descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def committed(self) -> int:
        folder = self.folder / "store" / self.name / layout.CHECKPOINTS
        found = [layout.step_of(path.parent.name) for path in folder.glob("*/COMMITTED")]
        return max((step for step in found if step is not None), default=0)

    def wait(self, what: Callable[[], bool], seconds: float = 300) -> None:
        """Wait; a node that ends meanwhile is told."""
        until = time.monotonic() + seconds
        while not what():
            ended = [i for i, p in self.nodes.items() if p.poll() is not None]
            words = "".join(f"node {i}:\n{self.said(i)[-3000:]}" for i in self.nodes)
            assert not ended, f"{ended} ended\n{words}"
            assert time.monotonic() < until, words
            time.sleep(0.05)

    def end(self) -> None:
        """Wait until both nodes have succeeded."""
        for index, process in sorted(self.nodes.items()):
            code = process.wait(300)
            assert code == 0, f"node {index} ended with {code}\n{self.said(index)[-3000:]}"

    def state(self) -> str:
        name = layout.step_name(STEPS)
        path = self.folder / "store" / self.name / layout.CHECKPOINTS / name / "state.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def losses(self) -> dict[int, float]:
        path = self.folder / "store" / self.name / layout.METRICS
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def calm(folder: Path) -> Run:
    """Return a run that nobody disturbed."""
    run = Run(folder, "calm")
    try:
        for index in range(2):
            run.start(index)
        run.end()
    finally:
        sweep(run)
    return run


@pytest.fixture
def run(folder: Path, calm: Run, request: pytest.FixtureRequest) -> Iterator[Run]:
    found = Run(folder, f"run-{len(list(folder.glob('run-*')))}")
    try:
        for index in (1, 0):  # who comes first waits
            found.start(index)
        yield found
    finally:
        sweep(found)


def sweep(run: Run) -> None:
    for index, process in run.nodes.items():
        if process.poll() is None:
            run.kill(index)


def test_two_nodes_are_one_world(calm: Run) -> None:
    root = calm.folder / "store" / "calm"
    result = json.loads((root / layout.RESULT).read_bytes())
    assert (result["npus"], result["steps"]) == (2, STEPS)
    names = {path.name for path in (root / "logs" / "attempt-1").iterdir()}
    assert names >= {"worker_0.log", "worker_1.log", "msrun.log", "msrun-1.log"}
    assert calm.reason(0).startswith("0 ")
    assert calm.reason(1).startswith("0 ")


@pytest.mark.parametrize("victim", [1, 0])
def test_a_lost_node_alone_is_replaced_and_no_bit_changes(run: Run, calm: Run, victim: int) -> None:
    other = 1 - victim
    survivor = run.nodes[other].pid
    run.wait(lambda: run.committed() >= 2 * SAVE_EVERY)
    run.kill(victim)
    del run.nodes[victim]
    # Sooner than by the silence of a peer, let alone a collective's timeout.
    run.wait(lambda: "generation=1 over: node" in run.said(other), LOST_SECONDS - 10)
    run.wait(lambda: not descendants(survivor) or "worker" not in words(survivor), 20)
    run.start(victim)
    run.end()
    assert run.nodes[other].pid == survivor
    assert "generation=2 restored=" in run.said(other)
    assert "generation=2 restored=0" not in run.said(other)
    assert run.state() == calm.state()
    assert run.losses() == calm.losses()


def words(pid: int) -> str:
    """Return the command lines below a process."""
    found = []
    for child in descendants(pid):
        try:
            found.append(Path(f"/proc/{child}/cmdline").read_text())
        except OSError:
            continue
    return "\n".join(found)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_node_that_is_told_to_stop_commits_first(run: Run, calm: Run, victim: int) -> None:
    run.wait(lambda: run.committed() >= SAVE_EVERY)
    run.nodes[victim].send_signal(signal.SIGTERM)
    assert run.nodes[victim].wait(60) == 75, run.said(victim)[-3000:]
    assert "75 stopped: stopped on request: step" in run.reason(victim)
    stopped = run.committed()
    assert stopped < STEPS
    run.start(victim)
    run.end()
    assert f"generation=2 restored={stopped}" in run.said(0)
    assert run.state() == calm.state()


def test_a_killed_worker_is_its_nodes_failure_and_not_the_others(run: Run, calm: Run) -> None:
    run.wait(lambda: run.committed() >= SAVE_EVERY)
    below = descendants(run.nodes[1].pid)
    [worker] = [
        pid for pid in below if b"jobs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and b"cluster.run" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]  # fmt: skip
    os.kill(worker, signal.SIGKILL)
    assert run.nodes[1].wait(60) == 137, run.said(1)[-3000:]
    assert run.nodes[0].poll() is None, run.said(0)[-3000:]
    run.start(1)
    run.end()
    assert run.state() == calm.state()
