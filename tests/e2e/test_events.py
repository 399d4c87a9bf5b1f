"""What happens to pods on real nodes: for each event the run goes on, or ends, as the design says.

A run that goes on must end with the very bits of a run that nobody disturbed. `pytest -rP` shows
what `status` said meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NODES, NPUS, wait_for

from jobs import layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, SAVE_EVERY = 100, 10
SPEC = (
    "--model", "tiny", "--data", "tiny", "--set", "precision=fp32", "--set", "resolution=128",
    "--set", f"steps={STEPS}", "--set", f"save_every={SAVE_EVERY}", "--set", "log_every=1",
    "--set", "validation_prompts=[]",
)  # fmt: skip
TWO = ("submit", "train", "--npus", str(NPUS), "--nodes", str(NODES), *SPEC)
ONE = ("submit", "train", "--npus", "1", *SPEC)


class Run:
    """A run on the cluster, seen from this machine, on which its containers' processes are."""

    def __init__(self, nodes: Any, name: str, bucket: Path, submit: tuple[str, ...] = TWO) -> None:
        self.nodes, self.name = nodes, name
        self.store = bucket / "e2e" / name
        nodes.submit(name, *submit)

    def committed(self) -> int:
        found = [
            layout.step_of(path.parent.name)
            for path in (self.store / layout.CHECKPOINTS).glob("*/COMMITTED")
        ]
        return max((step for step in found if step is not None), default=0)

    def train_on(self, more: int = 1) -> int:
        """Wait until there are that many more commits; return the newest step."""
        want = self.committed() + more * SAVE_EVERY
        wait_for(f"a commit of step {want}", lambda: self.committed() >= want, 300)
        return self.committed()

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

    def end(self, seconds: float = 600) -> dict[str, Any]:
        """Wait for success; return what `status` says."""
        self.tell()
        self.nodes.launch("logs", self.name, "-f", seconds=seconds)
        found = self.tell()
        assert found["state"] == "succeeded", found
        return found

    def tell(self) -> dict[str, Any]:
        """Return what `status` says, and print it."""
        found: dict[str, Any] = self.nodes.status(self.name)
        print(f"{self.name}: {found['state']}: {found.get('reason')}")
        return found

    def state(self) -> str:
        folder = self.store / layout.CHECKPOINTS / layout.step_name(STEPS)
        return hashlib.sha256((folder / "state.safetensors").read_bytes()).hexdigest()


class Calm(dict[tuple[str, ...], str]):
    """The final state of an undisturbed run, by the words that submit it; made when asked for."""

    def __init__(self, nodes: Any) -> None:
        super().__init__()
        self.nodes = nodes

    def __missing__(self, words: tuple[str, ...]) -> str:
        run = Run(self.nodes, f"calm-{len(self)}", self.nodes.bucket, words)
        run.end()
        self[words] = run.state()
        return self[words]


@pytest.fixture(scope="module")
def calm(nodes: Any) -> Calm:
    return Calm(nodes)


@pytest.fixture
def start(nodes: Any, request: pytest.FixtureRequest) -> Any:
    made: list[Run] = []

    def begin(*words: str) -> Run:
        # The parameters tell the tests apart, so it is the words before them that are cut.
        test, _, parameters = request.node.name.removeprefix("test_").lower().partition("[")
        name = re.sub(r"[^a-z0-9]+", "-", f"{test[:24]}-{parameters}").strip("-")
        made.append(Run(nodes, name, nodes.bucket, words or TWO))
        return made[-1]

    yield begin
    for run in made:
        nodes.kubectl(
            "delete", "job", run.name, "--ignore-not-found", "--force", "--grace-period=0"
        )


@pytest.mark.parametrize("index", [0, 1])
def test_deleted_pod_commits_and_is_replaced(start: Any, calm: Any, nodes: Any, index: int) -> None:
    run = start()
    run.train_on()
    before = [run.uid(0), run.uid(1)]
    pod = nodes.pods(run.name)[index]["metadata"]["name"]
    nodes.kubectl("delete", "pod", pod)
    run.end()
    after = [run.uid(0), run.uid(1)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [i != index for i in range(2)]
    assert run.state() == calm[TWO]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "program", ["jobs.worker", "mindspore.parallel.cluster.run", "jobs.runtime"]
)
def test_killed_process_costs_its_pod_alone(
    start: Any, calm: Any, program: str, index: int
) -> None:
    run = start()
    run.train_on()
    other = run.uid(1 - index)
    run.kill(program, index)
    run.end()
    assert run.uid(1 - index) == other
    assert run.state() == calm[TWO]


def test_too_little_memory_is_told_as_memory(nodes: Any) -> None:
    name = "little"
    job = yaml.safe_load(nodes.launch(*ONE, "--name", name, "--dry-run", "-o", "yaml"))
    [main] = job["spec"]["template"]["spec"]["containers"]
    for kind in ("requests", "limits"):
        main["resources"][kind]["memory"] = "300Mi"
    job["spec"]["backoffLimitPerIndex"] = 0
    (nodes.home / "little.yaml").write_text(yaml.safe_dump(job))
    nodes.kubectl("create", "-f", str(nodes.home / "little.yaml"))
    found = wait_for("the end", lambda: (s := nodes.status(name))["state"] == "failed" and s, 300)
    words = str(found).lower()
    assert "137" in words or "oom" in words, found
    assert "memory" in words, found
    nodes.kubectl("delete", "job", name)


def test_drained_pod_goes_on_elsewhere(start: Any, calm: Any, nodes: Any) -> None:
    run = start(*ONE)
    run.train_on()
    [pod] = nodes.pods(run.name)
    node = pod["spec"]["nodeName"]
    try:
        nodes.kubectl("drain", node, "--force", "--delete-emptydir-data", "--timeout=120s")
        run.end()
        [again] = nodes.pods(run.name)
        assert again["spec"]["nodeName"] != node
    finally:
        nodes.kubectl("uncordon", node)
    assert run.state() == calm[ONE]


def test_restart_of_a_nodes_services_disturbs_nothing(start: Any, calm: Any, nodes: Any) -> None:
    run = start(*ONE)
    run.train_on()
    uid = run.uid(0)
    for service in ("kubelet-0", "containerd-0", "kubelet-1", "containerd-1"):
        nodes.stop_service(service)
    time.sleep(10)
    for service in ("containerd-0", "containerd-1", "kubelet-0", "kubelet-1"):
        nodes.start_service(service)
    run.end()
    assert run.uid(0) == uid
    assert run.state() == calm[ONE]


def test_store_that_is_away_for_two_minutes_costs_nothing(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start()
    run.train_on()
    nodes.s3.stop()
    time.sleep(120)
    nodes.s3.start()
    run.end()
    assert run.state() == calm[TWO]


def test_api_server_that_is_away_for_a_minute_costs_nothing(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start()
    run.train_on()
    uids = [run.uid(0), run.uid(1)]
    server = int((nodes.state / "kube-apiserver.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        time.sleep(60)
    finally:
        os.kill(server, signal.SIGCONT)
    run.end()
    assert [run.uid(0), run.uid(1)] == uids
    assert run.state() == calm[TWO]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--image", "localhost/no-such:1"), "no-such"),
        (("--store-secret", "no-such-keys"), "no-such-keys"),
    ],
)
def test_what_is_missing_is_named(
    start: Any, nodes: Any, flags: tuple[str, ...], told: str
) -> None:
    run = start(*ONE, *flags)
    found = wait_for(
        "the reason", lambda: (s := nodes.status(run.name)) and told in str(s) and s, 120
    )
    assert found["state"] == "pending", found
    nodes.launch("cancel", run.name, "--now")


@pytest.mark.parametrize("phase", ["starting", "training"])
def test_cancel_ends_all_pods_and_keeps_what_is_committed(
    start: Any, nodes: Any, phase: str
) -> None:
    run = start()
    ready: dict[str, Callable[[], Any]] = {
        "starting": lambda: run.processes("jobs.runtime", 0),
        "training": lambda: run.committed() >= SAVE_EVERY,
    }
    wait_for(phase, ready[phase])
    before = run.committed()
    began = time.monotonic()
    nodes.launch("cancel", run.name)
    assert time.monotonic() - began < 60
    wait_for("the pods' end", lambda: not nodes.pods(run.name), 60)
    assert not run.processes("jobs.worker", 0) + run.processes("jobs.worker", 1)
    assert run.committed() >= before
    if phase == "training":
        assert run.committed() > before or run.committed() % SAVE_EVERY


def test_start_and_stop_are_quick(start: Any, nodes: Any) -> None:
    """From the container's start to msrun's, and from SIGTERM to the end."""
    run = start(*ONE)
    wait_for("msrun", lambda: run.processes("mindspore.parallel.cluster.run", 0))
    [supervisor] = run.processes("jobs.runtime", 0)[:1]
    [msrun] = run.processes("mindspore.parallel.cluster.run", 0)[:1]
    assert age_of(supervisor) - age_of(msrun) <= 3
    run.train_on()
    [pod] = nodes.pods(run.name)
    began = time.monotonic()
    nodes.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    wait_for("the end", lambda: not Path(f"/proc/{supervisor}").exists(), 60)
    took = time.monotonic() - began
    log = (run.store / "logs" / "node-0").glob("*.log")
    text = "".join(path.read_text() for path in log)
    spent = sum(float(s) for s in re.findall(r"(?:saved|committed)=.*seconds=([\d.]+)", text)[-2:])
    assert took <= spent + 2, (took, spent)


def age_of(pid: int) -> float:
    """Return how long a process has lived, in seconds."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
