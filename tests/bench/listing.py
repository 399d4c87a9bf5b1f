"""Measures `list` of many runs beside `kubectl get jobs`, and `status` and `submit` among them.

    KUBEBUILDER_ASSETS=DIR python tests/bench/listing.py [--runs 5000] [--rounds 5]

A real API server with 5,000 rendered Jobs in one namespace, one in ten of them running with a pod.
Every command is a process of its own, from its start to its end; each round runs all of them, one
after the other, so that a busy machine slows all alike. What counts is the median of each round's
ratio for `list`, and the median of the seconds for the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

import conftest as cluster

from jobs.specs import TrainSpec
from launcher import manifests
from launcher.backends.apiserver import ApiServer
from launcher.plan import plan
from launcher.settings import Target

MOST_RATIO, MOST_MIB, MOST_STATUS, MOST_SUBMIT = 1.5, 150, 1.0, 1.5
NAMESPACE = "bench"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
THREADS = 8
_MAIN = "import sys; from launcher.cli import main; sys.exit(main(sys.argv[1:]))"
_LAUNCHER = (sys.executable, "-c", _MAIN)
_TARGET = ("--image", "registry.example/jobs:1", "--store", "s3://bucket/runs")


@dataclass(frozen=True)
class Measured:
    """One process."""

    seconds: float
    cpu: float
    mib: float
    output: str


def measured(*words: str | Path, folder: Path, kubeconfig: Path) -> Measured:
    """Run a process and return its wall time and its largest resident set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "AWS_"))}
    env = kept | {
        "KUBECONFIG": str(kubeconfig), "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip
    began = time.monotonic()
    child = subprocess.Popen(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    out = child.stdout.read()
    told = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {child.returncode}: {told}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out)


def job(number: int) -> dict[str, Any]:
    """Return a Job as `submit` renders it."""
    target = Target(image="registry.example/jobs:1", store="s3://bucket/runs", namespace=NAMESPACE)
    made = plan(TrainSpec(), target, name=f"run-{number:05d}", npus=8)
    return manifests.render(made, manifests.base("train"))


def fill(api: ApiServer, runs: int) -> None:
    """Create the Jobs; nine of ten have ended, and the tenth has a pod that runs."""
    api.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    api.post(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
    template = job(0)
    now = "2026-01-01T00:00:00Z"
    row = {"status": "True", "lastTransitionTime": now, "lastProbeTime": now}
    over = {
        "startTime": now, "completionTime": now, "succeeded": 1, "completedIndexes": "0",
        "uncountedTerminatedPods": {},
        "conditions": [{**row, "type": "SuccessCriteriaMet"}, {**row, "type": "Complete"}],
    }  # fmt: skip
    going = {"startTime": now, "active": 1, "ready": 1, "uncountedTerminatedPods": {}}

    def make(number: int) -> None:
        name = f"run-{number:05d}"
        metadata = {**template["metadata"], "name": name}
        made = api.post(JOBS, {**template, "metadata": metadata})
        runs_on = number % 10 == 0
        api.patch(f"{JOBS}/{name}/status", {"status": going if runs_on else over})
        if runs_on:
            pod(api, made)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(make, range(runs)):
            pass


def pod(api: ApiServer, job: dict[str, Any]) -> None:
    """Create the pod of a Job, running."""
    name, template = job["metadata"]["name"], job["spec"]["template"]
    owner = {
        "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"],
        "controller": True,
    }  # fmt: skip
    metadata = {**template["metadata"], "name": f"{name}-0", "ownerReferences": [owner]}
    main = {"name": "main", "image": "none"}
    spec = {"containers": [main], "nodeName": "node-0", "automountServiceAccountToken": False}
    api.post(PODS, {"metadata": metadata, "spec": spec})
    api.patch(f"{PODS}/{name}-0/status", {"status": {"phase": "Running"}})


def rounds(count: int, runs: int, folder: Path, kubeconfig: Path, kubectl: Path) -> int:
    """Measure, print a table, and return 1 if a limit is not kept."""
    mine = ("-n", NAMESPACE, "--backend", "kubernetes")
    found: dict[str, list[Measured]] = {
        name: [] for name in ("kubectl", "list", "status", "submit")
    }
    for turn in range(count + 1):
        commands = {
            "kubectl": (kubectl, f"--cache-dir={folder / 'cache'}", "get", "jobs", "-n", NAMESPACE),
            "list": (*_LAUNCHER, "list", *mine),
            "status": (*_LAUNCHER, "status", "run-00001", *mine),
            "submit": (*_LAUNCHER, "submit", "train", *_TARGET, "--name", f"new-{turn}", *mine),
        }
        for name, words in commands.items():
            row = measured(*words, folder=folder, kubeconfig=kubeconfig)
            if turn:  # the first one fills caches
                found[name].append(row)
        lines = [
            len(found[name][-1].output.splitlines()) if turn else 0 for name in ("kubectl", "list")
        ]
        assert lines[0] == lines[1] >= runs * bool(turn), lines
    ratio = statistics.median(
        ours.seconds / theirs.seconds
        for ours, theirs in zip(found["list"], found["kubectl"], strict=True)
    )
    seconds = {name: statistics.median(row.seconds for row in rows) for name, rows in found.items()}
    cpu = {name: statistics.median(row.cpu for row in rows) for name, rows in found.items()}
    peak = max(row.mib for row in found["list"])
    row = "{:<18}{:6.2f} s ({:.2f} s of CPU)  {}"
    print(row.format("kubectl get jobs", seconds["kubectl"], cpu["kubectl"], "").rstrip())
    for name, told, good in (
        ("list", f"ratio {ratio:.2f} <= {MOST_RATIO}, {peak:.0f} MiB <= {MOST_MIB}",
         ratio <= MOST_RATIO and peak <= MOST_MIB),
        ("status", f"<= {MOST_STATUS} s", seconds["status"] <= MOST_STATUS),
        ("submit", f"<= {MOST_SUBMIT} s", seconds["submit"] <= MOST_SUBMIT),
    ):  # fmt: skip
        print(row.format(name, seconds[name], cpu[name], f"{told}  {'ok' if good else 'TOO MUCH'}"))
    limits = (MOST_STATUS, MOST_SUBMIT)
    slow = [name for name, most in zip(("status", "submit"), limits, strict=True)
            if seconds[name] > most]  # fmt: skip
    return int(bool(slow) or ratio > MOST_RATIO or peak > MOST_MIB)


def main(arguments: Iterable[str] | None = None) -> int:
    """Fill a cluster of its own and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(None if arguments is None else list(arguments))
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    kubectl = Path(sys.executable).with_name("kubectl")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "cluster").mkdir()
        kubeconfig = stack.enter_context(cluster.control_plane(assets, folder / "cluster"))
        os.environ["KUBECONFIG"] = str(kubeconfig)
        began = time.monotonic()
        fill(ApiServer(), given.runs)
        print(f"{given.runs} runs made in {time.monotonic() - began:.0f} s", file=sys.stderr)
        return rounds(given.rounds, given.runs, folder, kubeconfig, kubectl)


if __name__ == "__main__":
    sys.exit(main())
