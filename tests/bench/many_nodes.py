"""Measures `status` of a pending run and `doctor` on a large cluster: seconds and memory of each.

    KUBEBUILDER_ASSETS=DIR python tests/bench/many_nodes.py [--nodes 1000] [--pods 20] [--rounds 5]

A real API server, controllers and scheduler; KWOK plays the nodes, of eight NPUs each, and pods:
on each node seven that hold one NPU each, rendered as a run's, and thirteen small ones beside
them. The measured run asks for all NPUs of a node, so that every node and pod has to be looked at.
KWOK and the controllers are stopped before the measuring, as they would take a core. What counts is
the median.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import local
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

import conftest as cluster

from jobs.specs import TrainSpec
from launcher import manifests
from launcher.plan import plan
from launcher.settings import Target

MOST_SECONDS, MOST_MIB = 3.0, 200
NPU = "huawei.com/Ascend910"
HOLDERS, BESIDE = 7, 13
"""Pods of a node: with an NPU each, and without."""
THREADS = 16
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
SETTINGS = {"LAUNCHER_IMAGE": "registry.example/jobs:1", "LAUNCHER_STORE": "file:///data"}
"""What doctor looks at beside the cluster: no store that would be tried from here."""
# A process counts the memory of the one that started it as its own: so a small one starts it.
_MEASURE = """
import os, subprocess, sys, time
began = time.monotonic()
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stderr=subprocess.STDOUT)
_, status, usage = os.wait4(child.pid, 0)
cpu = usage.ru_utime + usage.ru_stime
print(time.monotonic() - began, cpu, usage.ru_maxrss / 1024, status, file=sys.stderr)
"""
_STATUS = "import sys; from launcher.cli import main; sys.exit(main(sys.argv[1:]))"


class Poster:
    """Creates objects over as many connections as there are threads."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        (server,), (user,) = document["clusters"], document["users"]
        self._host = server["cluster"]["server"].removeprefix("https://")
        self._context = ssl.create_default_context(
            cafile=server["cluster"]["certificate-authority"]
        )
        self._headers = {
            "Authorization": f"Bearer {user['user']['token']}",
            "Content-Type": "application/json",
        }
        self._threads = local()

    def post(self, path: str, body: Any) -> None:
        if not hasattr(self._threads, "line"):
            self._threads.line = http.client.HTTPSConnection(self._host, context=self._context)
        line = self._threads.line
        line.request("POST", path, json.dumps(body), self._headers)
        answer = line.getresponse()
        told = answer.read()
        assert answer.status == 201, told[:500]

    def all(self, path: str, bodies: Iterable[Any]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda body: self.post(path, body), bodies):
                pass


def node(number: int) -> Any:
    room = {"cpu": "192", "memory": "1500Gi", "ephemeral-storage": "3Ti", "pods": "110", NPU: "8"}
    name = f"atlas-{number:04d}"
    labels = {
        "kubernetes.io/arch": "arm64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
        "accelerator": "huawei-Ascend910", "accelerator-type": "module-910b-8",
        "host-arch": "huawei-arm", "node.kubernetes.io/npu.chip.name": "910B3",
        "workerselector": "dls-worker-node",
    }  # fmt: skip
    # A node lists up to fifty images (kubelet, nodeStatusMaxImages).
    images = [{"names": [f"registry.example/team/image-{n}:1"], "sizeBytes": n} for n in range(50)]
    return {
        "metadata": {"name": name, "labels": labels, "annotations": cluster.FAKE},
        "status": {"capacity": room, "allocatable": room, "images": images},
    }


def manifest(name: str, npus: int, namespace: str = "") -> Any:
    target = Target(
        image="registry.example/jobs:1",
        store="s3://bucket/runs",
        namespace=namespace,
        cpu_per_npu=8,
    )
    made = plan(TrainSpec(), target, name=name, npus=npus)
    return manifests.render(made, manifests.base("train"))


def pods(number: int, each: int, template: Any) -> Iterable[Any]:
    """Yield the pods of a node, placed there."""
    name = f"atlas-{number:04d}"
    for index in range(each):
        if index < HOLDERS:
            pod = {**template, "spec": {**template["spec"], "nodeName": name}}
        else:
            env = [{"name": f"SETTING_{n}", "value": "x" * 40} for n in range(8)]
            resources = {"requests": {"cpu": "100m", "memory": "128Mi"}}
            container = {"name": "main", "image": "i", "env": env, "resources": resources}
            pod = {"metadata": {}, "spec": {"nodeName": name, "containers": [container]}}
        yield {**pod, "metadata": {**pod["metadata"], "name": f"pod-{number:04d}-{index:02d}"}}


def measured(kubeconfig: Path, *words: str) -> tuple[float, float, float, str]:
    """Return seconds, those of the CPU, MiB and the output of a process of its own."""
    variables = dict(
        os.environ, KUBECONFIG=str(kubeconfig), HOME=str(kubeconfig.parent), **SETTINGS
    )
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, _STATUS, *words], env=variables, cwd=kubeconfig.parent,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, cpu, mib, code = (float(word) for word in done.stderr.split())
    # doctor fails once the nodes, which nobody plays any more, are told as not ready.
    assert code == 0 or words[0] == "doctor", done.stdout
    return seconds, cpu, mib, done.stdout


def until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=HOLDERS + BESIDE, help="on each node")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--hold", action="store_true", help="wait for the end of stdin before the end"
    )
    asked = parser.parse_args()
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        kubeconfig = stack.enter_context(cluster.control_plane(assets, folder))
        start(stack, assets, folder, "kube-scheduler")
        with ExitStack() as playing:
            fill(playing, assets, folder, asked.nodes, asked.pods)
            Poster(kubeconfig).post("/apis/batch/v1/namespaces/default/jobs", manifest("cat", 8))
            until(lambda: "waits for 8 NPUs" in measured(kubeconfig, "status", "cat")[3], 120)
        code = report(kubeconfig, asked.rounds)
        if asked.hold:
            print(kubeconfig, flush=True)
            sys.stdin.read()
        return code


def fill(playing: ExitStack, assets: Path, folder: Path, nodes: int, each: int) -> None:
    """Start controllers and KWOK; make nodes and pods, and wait until all of these run."""
    kubeconfig, began = folder / "kubeconfig", time.monotonic()
    poster = Poster(kubeconfig)
    start(playing, assets, folder, "kube-controller-manager",
          use_service_account_credentials="true", root_ca_file=folder / "apiserver.crt",
          service_account_private_key_file=folder / "sa.key")  # fmt: skip
    poster.all("/api/v1/nodes", map(node, range(nodes)))
    until(lambda: any_there(kubeconfig, ACCOUNTS, "metadata.name=default"), 60)
    template = manifest("x", 1)["spec"]["template"]
    every = (pod for number in range(nodes) for pod in pods(number, each, template))
    poster.all("/api/v1/namespaces/default/pods", every)
    print(f"{nodes * each} pods made in {time.monotonic() - began:.0f} s", flush=True)
    (port,) = cluster.free_ports(1)
    ((key, value),) = cluster.FAKE.items()
    arguments = cluster.flags(
        kubeconfig=kubeconfig, config=Path(cluster.__file__).with_name("stages.yaml"),
        manage_all_nodes="false", manage_nodes_with_annotation_selector=f"{key}={value}",
        server_address=f"127.0.0.1:{port}",
    )  # fmt: skip
    playing.enter_context(cluster.process(folder / "kwok.log", assets / "kwok", arguments))
    until(lambda: not any_there(kubeconfig, "/api/v1/pods", "status.phase=Pending"), 1800)
    print(f"all run after {time.monotonic() - began:.0f} s", flush=True)


def start(stack: ExitStack, assets: Path, folder: Path, name: str, **values: Any) -> None:
    (port,) = cluster.free_ports(1)
    arguments = cluster.flags(
        kubeconfig=folder / "kubeconfig", bind_address="127.0.0.1", secure_port=port,
        cert_dir=folder, leader_elect="false", **values,
    )  # fmt: skip
    stack.enter_context(cluster.process(folder / f"{name}.log", assets / name, arguments))


def any_there(kubeconfig: Path, path: str, where: str) -> bool:
    """Return whether there is an object that a field selector selects."""
    from launcher.backends.apiserver import ApiServer

    os.environ["KUBECONFIG"] = str(kubeconfig)
    return bool(ApiServer().metadata(path, [("fieldSelector", where), ("limit", "1")])["items"])


def report(kubeconfig: Path, rounds: int) -> int:
    """Print the figures; return the exit code: 1 where the bar is missed."""
    cases = {
        "start, and a list of nothing": ("list", "-n", "kube-public"),
        "status": ("status", "cat"),
        "doctor": ("doctor",),
    }
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    told = ""
    for _ in range(rounds):
        for name, words in cases.items():
            *numbers, told = measured(kubeconfig, *words)
            rows[name].append(tuple(numbers))
    print(told)
    for name, found in rows.items():
        seconds, cpu, mib = (statistics.median(column) for column in zip(*found, strict=True))
        spread = f"{min(row[0] for row in found):.2f}-{max(row[0] for row in found):.2f}"
        print(f"{name}: {seconds:.2f} s ({spread}), {cpu:.2f} s of CPU, {mib:.0f} MiB")
    judged = [rows["status"], rows["doctor"]]
    good = all(statistics.median(row[0] for row in found) <= MOST_SECONDS for found in judged)
    good = good and max(row[2] for found in judged for row in found) <= MOST_MIB
    print(f"bar: <= {MOST_SECONDS} s, <= {MOST_MIB} MiB: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
