"""What a pod is allowed, what it is given, what it lacks, and how quickly it starts and stops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import NPUS, ONE, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

MSRUN = "mindspore.parallel.cluster.run"
SHORT = ("submit", "train", "--npus", "1", "--model", "tiny", "--data", "tiny", "--steps", "4",
         "--save-every", "2", "--set", "validation_prompts=[]")  # fmt: skip
HOG = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
held = []
while True:
    held.append(b"x" * (16 << 20))
"""
"""Takes memory in a container's cgroup (version 1) until the kernel kills another process there."""


def test_a_pod_is_confined(start: Any, nodes: Any) -> None:
    run = start("submit", "train", "--npus", str(NPUS), *ONE[4:])
    [supervisor] = wait_for("PID 1", lambda: run.processes("jobs.runtime", 0))
    text = Path(f"/proc/{supervisor}/status").read_text()
    row = dict(re.findall(r"^(\w+):\t(.*)$", text, re.M))
    assert row["Uid"].split() == row["Gid"].split() == ["1000"] * 4
    assert row["Groups"].split() == ["1000"]
    assert {row[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (row["NoNewPrivs"], row["Seccomp"]) == ("1", "2")
    mounts = {
        line.split()[1]: line.split()[3].split(",")
        for line in Path(f"/proc/{supervisor}/mounts").read_text().splitlines()
    }
    assert "ro" in mounts["/"]
    ours = {path for path in mounts if not path.startswith(("/proc", "/dev/", "/sys"))}
    written = {path for path in ours if "rw" in mounts[path]}
    # The kubelet's own three, and the volumes.
    assert written - {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev"} == {
        "/scratch", "/home/jobs", "/tmp"
    }  # fmt: skip
    assert not [path for path in mounts if "serviceaccount" in path]
    shm = os.statvfs(f"/proc/{supervisor}/root/dev/shm")
    assert shm.f_frsize * shm.f_blocks == NPUS * 4 << 30


def test_any_user_of_the_devices_group_trains(start: Any) -> None:
    """A namespace may force its own uids; the group owns the devices and the volumes."""

    def other(job: Any, main: Any) -> None:
        job["template"]["spec"]["securityContext"]["runAsUser"] = 54321

    run = start(*SHORT, change=other)
    [supervisor] = wait_for("PID 1", lambda: run.processes("jobs.runtime", 0))
    assert "Uid:\t54321" in Path(f"/proc/{supervisor}/status").read_text()
    run.end()


def with_memory(amount: str) -> Any:
    def change(job: Any, main: Any) -> None:
        job["backoffLimitPerIndex"] = 1
        for kind in ("requests", "limits"):
            main["resources"][kind]["memory"] = amount

    return change


def test_too_little_memory_is_told_as_memory_with_peak_limit_and_advice(start: Any) -> None:
    run = start(*SHORT, change=with_memory("600Mi"))
    found = run.says("'state': 'failed'", "memory_per_npu_gib", seconds=1200)
    assert re.search(r"peak 0\.6 GiB of 0\.6 GiB", str(found)), found


def test_a_worker_that_the_kernel_kills_for_memory_costs_an_attempt(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start(*ONE, change=with_memory("3Gi"))
    run.train_on()
    first = run.uid(0)
    [supervisor] = run.processes("jobs.runtime", 0)
    cgroup = re.findall(r":memory:(.*)", Path(f"/proc/{supervisor}/cgroup").read_text())
    if not cgroup:
        pytest.skip("cgroup version 2 kills the whole container")
    folder = f"/sys/fs/cgroup/memory{cgroup[0]}"
    workers = run.processes("jobs.worker", 0)
    for pid in workers:  # of two large processes the kernel is to take this one
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    hog = subprocess.Popen([sys.executable, "-c", HOG, folder], stderr=subprocess.DEVNULL)
    try:
        wait_for("a kill", lambda: set(run.processes("jobs.worker", 0)) != set(workers), 60)
    finally:
        hog.kill()
        hog.wait()
    run.says("out of memory", "peak 3.0 GiB of 3.0 GiB")
    run.end()
    assert run.uid(0) != first
    assert run.failures(0) == (1, 0)
    run.resumed()
    assert run.state() == calm[ONE]


def in_memory(job: Any, main: Any) -> None:
    """Make the pod's disk one that is full after 1 GiB."""
    [work] = [row for row in job["template"]["spec"]["volumes"] if row["name"] == "work"]
    work["emptyDir"] = {"medium": "Memory", "sizeLimit": "1Gi"}


def small(job: Any, main: Any) -> None:
    """Let the node evict a pod whose disk grows past 1 GiB."""
    [work] = [row for row in job["template"]["spec"]["volumes"] if row["name"] == "work"]
    work["emptyDir"] = {"sizeLimit": "1Gi"}


@pytest.mark.parametrize(
    ("change", "words", "failures"),
    [
        (in_memory, ("69", "No space left on device"), {(1, 0)}),
        # The kubelet leaves such a pod a second: if it commits in that (75) it is not counted.
        (small, ("evicted", "exceeds the limit"), {(0, 1), (1, 0)}),
    ],
    ids=["in-memory", "small"],
)
def test_a_disk_that_is_full_costs_a_pod(
    start: Any, calm: Any, change: Any, words: tuple[str, ...], failures: set[tuple[int, int]]
) -> None:
    run = start(*ONE, change=change)
    run.train_on()
    first, filler = run.uid(0), run.work(0) / "filler"
    with filler.open("wb") as file:
        try:
            for _ in range(1100):
                file.write(b"x" * (1 << 20))
        except OSError:
            pass
    run.says(*words)
    run.end()
    assert run.uid(0) != first
    assert run.failures(0) in failures
    run.resumed()
    assert run.state() == calm[ONE]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LAUNCHER_IMAGE": "localhost:1/no-such:1"}, "localhost:1/no-such:1"),
        ({"LAUNCHER_STORE_SECRET": "no-such-keys"}, "Secret no-such-keys does not exist"),
    ],
    ids=["image", "secret"],  # the run's name, which shall not say it
)
def test_what_is_missing_is_named(
    start: Any, nodes: Any, monkeypatch: pytest.MonkeyPatch, variables: Any, told: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = start(*ONE)
    found = run.says(told, "'stuck': True")  # not at the first refusal
    assert found["state"] == "starting", found
    nodes.launch("cancel", run.name, "--now")


def test_start_and_stop(start: Any, nodes: Any) -> None:
    """Print the time from the start of PID 1 to that of msrun, and from SIGTERM to the end."""
    run = start(*ONE)
    wait_for("msrun", lambda: run.processes(MSRUN, 0))
    [supervisor] = run.processes("jobs.runtime", 0)
    [msrun] = run.processes(MSRUN, 0)
    print(f"start to msrun: {age_of(supervisor) - age_of(msrun):.2f} s")
    run.train_on()
    [pod] = nodes.pods(run.name)
    began = time.monotonic()
    nodes.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    wait_for("the end", lambda: not Path(f"/proc/{supervisor}").exists(), 60)
    took = time.monotonic() - began
    run.end()
    text = nodes.launch("logs", run.name)
    [before] = re.findall(r"^.*signal=SIGTERM(.*?)exit=75", text, re.M | re.S)
    spent = [float(number) for number in re.findall(r"(?:saved|committed)=.*seconds=(.*)", before)]
    print(f"SIGTERM to exit: {took:.2f} s, of it saving and uploading {spent}")
    assert len(spent) == 2


def age_of(pid: int) -> float:
    """Return how long a process has lived, in seconds."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
