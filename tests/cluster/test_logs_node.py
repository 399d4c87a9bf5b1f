"""`logs -f` on a real node: containerd, a kubelet that rotates, an API server that is killed.

Needs root, containerd, runc, gcc and the kubelet of KUBEBUILDER_ASSETS. The pods have no image to
speak of: the interpreter and libraries of this machine are mounted into them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import flags, free_ports, process, ready, wait_for

pytestmark = [
    pytest.mark.cluster, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)
]  # fmt: skip

LINES = int(os.environ.get("LOG_LINES", "200000"))
PER_SECOND = 2000
ROTATE_AT = "1Mi"
ROOT = Path(__file__).parents[2]
PRINTER = Path(__file__).with_name("printer.py")
IMAGE = "localhost/pause:1"
NODE = "127.0.0.1"
"""Name of the node, and so its address: the API server takes it for the kubelet's."""
LABEL = "prints"
PAUSE = """
#include <signal.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
int main() { signal(SIGTERM, end); for (;;) pause(); }
"""
CONTAINERD = """
version = 2
root = "{0}/root"
state = "{0}/state"
[grpc]
  address = "{0}/containerd.sock"
[ttrpc]
  address = "{0}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{0}/cni"
"""
KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": "/",
    "cgroupsPerQOS": False,
    "enforceNodeAllocatable": [],
    "failSwapOn": False,
    "failCgroupV1": False,
    "oomScoreAdj": 0,
    "featureGates": {"KubeletInUserNamespace": True},
    "evictionHard": {"memory.available": "50Mi"},
    "imageGCHighThresholdPercent": 100,
    "containerLogMaxSize": ROTATE_AT,
    "containerLogMonitorInterval": "3s",
    "resolvConf": "/dev/null",
    "syncFrequency": "5s",
}


@dataclass
class RealNode:
    """A kubelet with its containerd."""

    folder: Path
    rotated: set[str] = field(default_factory=set)

    def look(self) -> int:
        """Return how many files of logs were ever rotated."""
        for path in (self.folder / "logs").glob("*/main/0.log.*"):
            self.rotated.add(f"{path.parent}/{path.name.split('.')[2]}")
        return len(self.rotated)


def pause_image(folder: Path) -> Path:
    """Make the image of one static program, in the form that `docker save` has."""
    (folder / "pause.c").write_text(PAUSE)
    command = ["gcc", "-static", "-O2", "-o", folder / "pause", folder / "pause.c"]
    subprocess.run(command, check=True)
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(folder / "pause", "pause")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    parts = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(folder / "pause.tar", "w") as tar:
        for name, data in parts.items():
            row = tarfile.TarInfo(name)
            row.size = len(data)
            tar.addfile(row, BytesIO(data))
    return folder / "pause.tar"


@pytest.fixture(scope="module")
def node(
    cluster: Any,
    controllers: None,
    scheduler: None,
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str, str], NoReturn],
) -> Iterator[RealNode]:
    from kubernetes import client

    if cluster.lent:
        missing("e2e", "a cluster that is lent cannot be restarted")
    kubelet = Path(os.environ["KUBEBUILDER_ASSETS"]) / "kubelet"
    if os.geteuid() != 0:
        missing("e2e", "a node needs root")
    if not kubelet.exists():
        missing("e2e", f"KUBEBUILDER_ASSETS={kubelet.parent} has no kubelet")
    for program in ("containerd", "runc", "ctr", "gcc"):
        if shutil.which(program) is None:
            missing("e2e", f"a node needs {program}")
    folder = tmp_path_factory.mktemp("node")
    core = client.CoreV1Api(cluster.api())
    with ExitStack() as stack:
        stack.callback(leave_nothing, folder)
        socket = start_containerd(stack, folder)
        (port, health) = free_ports(2)
        config = KUBELET | {
            "address": "127.0.0.1", "port": port, "healthzPort": health,
            "podLogsDir": f"{folder}/logs", "containerRuntimeEndpoint": f"unix://{socket}",
        }  # fmt: skip
        (folder / "kubelet.json").write_text(json.dumps(config))
        values = {
            "config": folder / "kubelet.json",
            "kubeconfig": cluster.kubeconfig,
            "root_dir": folder / "kubelet",
            "cert_dir": folder / "pki",
            "hostname_override": NODE,
            "node_labels": f"{LABEL}=yes",
        }
        stack.enter_context(process(folder / "kubelet.log", kubelet, flags(**values)))
        stack.callback(forget, core)
        wait_for(lambda: any(ready(row) for row in nodes(core)), "the node")
        yield RealNode(folder)


def nodes(core: Any) -> list[Any]:
    return core.list_node(label_selector=LABEL).items


def forget(core: Any) -> None:
    for row in nodes(core):
        core.delete_node(row.metadata.name)


def start_containerd(stack: ExitStack, folder: Path) -> Path:
    (folder / "cni").mkdir()
    # Never called, since the pods are on the host's network; but a node without one is not ready.
    plugins = {"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]}
    (folder / "cni" / "1.conflist").write_text(json.dumps(plugins))
    config, socket = folder / "containerd.toml", folder / "containerd.sock"
    config.write_text(CONTAINERD.format(folder))
    program = Path(str(shutil.which("containerd")))
    stack.enter_context(process(folder / "containerd.log", program, ["--config", str(config)]))
    ctr = ["ctr", "--address", socket, "-n", "k8s.io"]
    wait_for(
        lambda: not subprocess.run([*ctr, "version"], capture_output=True).returncode, "containerd"
    )
    subprocess.run([*ctr, "images", "import", pause_image(folder)], check=True, capture_output=True)
    return socket


def leave_nothing(folder: Path) -> None:
    """End what containerd left running, and the mounts below it: containers outlive it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "shim" in words[0] and any(word.startswith(str(folder)) for word in words):
            children = Path(f"/proc/{entry.name}/task/{entry.name}/children").read_text().split()
            for pid in (*children, entry.name):
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((row for row in mounts if row.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", path], capture_output=True)


def job(namespace: str, run: str, store: Path) -> dict[str, Any]:
    """Return a Job that has the launcher's labels, rules and environment, and prints."""
    places = [
        Path("/usr"), Path("/lib"), Path("/lib64"), Path(sys.base_prefix), Path(sys.prefix), ROOT,
        store,
    ]  # fmt: skip
    mounts = [
        {"name": f"v{at}", "mountPath": str(path), "readOnly": path != store}
        for at, path in enumerate(places)
    ]
    volumes = [
        {"name": f"v{at}", "hostPath": {"path": str(path)}} for at, path in enumerate(places)
    ]
    variables = {
        "JOB_SPEC": "{}", "JOB_RUN": run, "JOB_STORE": store.as_uri(), "JOB_WORK": "/scratch",
        "JOB_WORKERS": "1", "JOB_NODES": "1", "JOB_DEVICE": "CPU", "PYTHONPATH": str(ROOT),
        "TERMINATION_LOG": "/dev/termination-log", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    uid = {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}
    main = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": [sys.executable, str(PRINTER), str(LINES), str(PER_SECOND)],
        "env": [
            {"name": "JOB_UID", "valueFrom": {"fieldRef": uid}},
            *({"name": name, "value": value} for name, value in variables.items()),
        ],
        "volumeMounts": [*mounts, {"name": "work", "mountPath": "/scratch"}],
    }
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [75]}},
    ]
    labels = {"app.kubernetes.io/managed-by": "launcher", "app.kubernetes.io/component": "train"}
    spec = {
        "completionMode": "Indexed", "completions": 1, "parallelism": 1,
        "backoffLimitPerIndex": 3, "maxFailedIndexes": 0, "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": rules},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "restartPolicy": "Never", "hostNetwork": True, "nodeSelector": {LABEL: "yes"},
                "terminationGracePeriodSeconds": 60, "automountServiceAccountToken": False,
                "containers": [main],
                "volumes": [*volumes, {"name": "work", "emptyDir": {}}],
            },
        },
    }  # fmt: skip
    metadata = {"name": run, "namespace": namespace, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


class Follower:
    """`launcher logs RUN -f` in a process of its own."""

    def __init__(self, folder: Path, namespace: str, run: str, *flags: str) -> None:
        self.out, self.err = folder / "followed.txt", folder / "words.txt"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "launcher.cli", "logs", run, "-f", "--backend", "kubernetes",
                 "-n", namespace, *flags],
                stdout=out, stderr=err, cwd=folder,
            )  # fmt: skip

    def numbers(self) -> list[int]:
        rows = self.out.read_bytes().split(b"\n")
        return [int(row.split()[2]) for row in rows[:-1] if row.startswith(b"[0] line ")]

    def until(self, number: int, node: RealNode) -> None:
        """Wait until it has shown so many lines."""

        def there() -> bool:
            node.look()
            assert self.child.poll() is None, self.err.read_text()
            with self.out.open("rb") as file:
                file.seek(max(0, self.out.stat().st_size - 1000))
                found = re.findall(rb"\n\[0\] line (\d+) ", file.read())
            return bool(found) and int(found[-1]) >= number

        wait_for(there, f"line {number}", 300)


def test_no_line_is_lost_or_repeated(
    node: RealNode, cluster: Any, api_server: Any, namespace: str, tmp_path: Path
) -> None:
    from kubernetes import client

    api = cluster.api()
    store = tmp_path / "store"
    store.mkdir()
    client.BatchV1Api(api).create_namespaced_job(namespace, job(namespace, "cat", store))
    follower = Follower(tmp_path, namespace, "cat")
    try:
        follower.until(LINES // 5, node)
        before = node.look()
        with api_server.down():
            wait_for(lambda: node.look() >= before + 3, "rotations that nobody could follow")
        follower.until(LINES * 3 // 5, node)
        core = client.CoreV1Api(api)
        (pod,) = core.list_namespaced_pod(namespace).items
        core.delete_namespaced_pod(pod.metadata.name, namespace)
        follower.until(LINES * 4 // 5, node)
        assert follower.child.wait(200) == 0, follower.err.read_text()
    finally:
        follower.child.kill()
        follower.child.wait()
    found = follower.numbers()
    words = follower.err.read_text()
    print(f"lines={len(found)} rotations={node.look()}\n{words}")
    assert found == list(range(LINES)), summary(found)
    assert node.look() >= 6
    assert follower.out.read_bytes().count(b"exit=") == 2
    assert "missing" not in words
    assert "going on when it answers" in words


def summary(found: list[int]) -> str:
    """Return what is wrong with the numbers, in a few words."""
    lost = sorted(set(range(LINES)) - set(found))
    again = len(found) - len(set(found))
    return f"lost {len(lost)} ({lost[:3]}...{lost[-3:]}), repeated {again}"
