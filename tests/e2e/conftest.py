"""Real nodes, a registry and an S3 server that they reach, the README's lines, the launcher.

NODES_COMMAND names a program that makes a throw-away cluster with real nodes on this machine:
`up DIR --nodes N --driver` prints an administrator's kubeconfig, `down DIR` ends everything. Its
nodes' containerd listen on DIR/containerd-N.sock; pods reach this machine at PODS_HOST (10.88.0.1).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from building import ROOT, TAG, arguments, buildah, prune, storage
from registry import Registry
from running import NODES, NPUS, TWO, Calm, Change, Run, alive, wait_for

LAUNCHER = str(Path(sys.executable).with_name("launcher"))
NAMESPACE = "diffusion-jobs"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest"}
PODS_HOST = os.environ.get("PODS_HOST", "10.88.0.1")
SERVER = "card-910b-2"
"""A server of two NPUs: two nodes of it are a world of four workers, which two cores can bear."""
LITTLE = {
    "LAUNCHER_CPU_PER_NPU": "1",
    "LAUNCHER_MEMORY_PER_NPU_GIB": "8",
    "LAUNCHER_RENDEZVOUS_MINUTES": "10",
}
"""What this machine, which plays both nodes, lets a user ask for."""
CHECKOUT = ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "jobs", "k8s",
            "prompts")  # fmt: skip
"""What the README's lines need of it."""


def block(name: str) -> str:
    """Return the README's block below <!-- NAME -->, as it stands there."""
    text = (ROOT / "README.md").read_text()
    [found] = re.findall(rf"^<!-- {name} -->\n```sh\n(.*?)^```$", text, re.M | re.S)
    return str(found)


@dataclass
class Nodes:
    """A cluster with real nodes, and a user's folder to run the launcher in."""

    state: Path
    kubeconfig: Path
    home: Path
    s3: S3
    values: Mapping[str, str]
    """What a user puts into the README's block of values."""
    services: dict[str, list[str]] = field(default_factory=dict)
    """Command lines of what was stopped."""

    @property
    def bucket(self) -> Path:
        """The folder of the bucket."""
        return self.s3.folder / "runs"

    def stop_service(self, name: str) -> None:
        """End a process of the cluster."""
        pid = int((self.state / f"{name}.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        self.services[name] = [word.decode() for word in words]
        os.kill(pid, signal.SIGTERM)
        wait_for(f"the end of {name}", lambda: not alive(pid), 30)

    def start_service(self, name: str) -> None:
        """Start it again as it was; a kubelet until it lives, as systemd does.

        It ends at once where its containerd does not answer yet.
        """
        command = self.services.pop(name)

        def lives() -> bool:
            with (self.state / f"{name}.log").open("ab") as log:
                child = subprocess.Popen(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            (self.state / f"{name}.pid").write_text(f"{child.pid}\n")
            try:
                child.wait(5 if name.startswith("kubelet") else 0.5)
            except subprocess.TimeoutExpired:
                return True
            return False

        wait_for(f"{name} to stay", lives, 60)

    def end_containers(self, node: str) -> None:
        """Kill all that runs on a node, as when its machine is switched off."""
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_text()
            except OSError:
                continue
            if "containerd-shim" in words and f"{self.state.resolve()}/{node}/" in words:
                below = subprocess.run(
                    ["pgrep", "-P", entry.name], capture_output=True, text=True, check=False
                ).stdout.split()
                for pid in (entry.name, *below):
                    os.kill(int(pid), signal.SIGKILL)

    def label(self, node: str) -> None:
        """Say which server a node is."""
        self.kubectl("label", "node", node, f"accelerator-type={SERVER}", "--overwrite")

    def fit_out(self, node: str) -> None:
        """Give a node that has come anew its NPUs and its label."""
        wait_for(f"{node} to come", lambda: self.kubectl("get", "node", node, check=False), 60)
        path = "/status/capacity/huawei.com~1Ascend910"
        patch = [{"op": "add", "path": path, "value": str(NPUS)}]
        self.kubectl(
            "patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch)
        )
        self.label(node)
        self.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=90s")

    def kubectl(self, *words: str, check: bool = True) -> str:
        """Run kubectl as the administrator, in the runs' namespace."""
        ended = subprocess.run(
            ["kubectl", "--kubeconfig", self.kubeconfig, "-n", NAMESPACE, *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or ended.returncode == 0, ended.stderr
        return ended.stdout

    def get(self, *words: str) -> Any:
        """Return what kubectl finds, as JSON has it."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"KUBECONFIG": str(self.kubeconfig), "PATH": path, "PS4": "+ $SECONDS s: "}
        return {**os.environ, **LITTLE, **self.values, **own}

    def run(self, script: str) -> str:
        """Run lines of the README in the checkout; return all that they print."""
        ended = subprocess.run(
            ["bash", "-xeuo", "pipefail", "-c", script], cwd=self.home, env=self.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{ended.stdout[-5000:]}\n{self.words()}"
        return ended.stdout

    def launch(self, *words: str, code: int = 0, seconds: float = 600) -> str:
        """Run the launcher as a user types it; return its stdout."""
        ended = subprocess.run(
            [LAUNCHER, *words], cwd=self.home, env=self.environment(),
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        told = f"launcher {' '.join(words)}\n{ended.stdout[-2500:]}\n{ended.stderr[-2500:]}"
        assert ended.returncode == code, f"{told}\n{self.words()}"
        assert "Traceback" not in ended.stderr, told
        return ended.stdout

    def create(self, name: str, *words: str, change: Callable[[Any, Any], None]) -> None:
        """Create the Job that the launcher prints, changed as an administrator may change it.

        Args:
            name: of the run.
            words: a submission.
            change: changes the Job's spec and its main container.
        """
        job = yaml.safe_load(self.launch(*words, "--name", name, "--dry-run", "-o", "yaml"))
        [main] = job["spec"]["template"]["spec"]["containers"]
        change(job["spec"], main)
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job))
        self.kubectl("create", "-f", str(path))

    def status(self, run: str) -> dict[str, Any]:
        """Return what `status` says."""
        found = json.loads(self.launch("status", run, "--json"))
        assert isinstance(found, dict)
        return found

    def pods(self, run: str) -> list[Any]:
        """Return the run's pods that are not on their way out, by index."""
        label = "batch.kubernetes.io/job-completion-index"
        here = [row for row in self._pods(run) if not row["metadata"].get("deletionTimestamp")]
        return sorted(here, key=lambda row: row["metadata"]["labels"][label])

    def living(self, run: str) -> list[Any]:
        """Return the run's pods that have not ended, those on their way out too."""
        over = ("Succeeded", "Failed")
        return [row for row in self._pods(run) if row["status"]["phase"] not in over]

    def _pods(self, run: str) -> list[Any]:
        found: list[Any] = self.get("pods", "-l", f"batch.kubernetes.io/job-name={run}")["items"]
        return found

    def words(self) -> str:
        """Return what there is to see, for a test that fails."""
        pods = self.kubectl("get", "pods", "-o", "wide", check=False)
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
        return f"{pods}\n{events[-2500:]}"


@pytest.fixture(scope="session")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, str], NoReturn]
) -> Iterator[Nodes]:
    """Yield a cluster on which the README's lines of an administrator have been run."""
    command = os.environ.get("NODES_COMMAND", "")
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", ""))
    if not command:
        missing("e2e", "NODES_COMMAND names no program that makes a cluster with real nodes")
    for program in ("containerd", "runc", "kubectl", "gcc"):
        if shutil.which(program) is None:
            missing("e2e", f"real nodes need {program}")
    if not (assets / "versitygw").exists():
        missing("e2e", f"KUBEBUILDER_ASSETS={assets} has no versitygw")
    state, scratch = tmp_path_factory.mktemp("nodes"), tmp_path_factory.mktemp("build")
    home = checkout(tmp_path_factory.mktemp("home"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, state, ignore_errors=True)  # nodes unpack the image
        stack.callback(subprocess.run, [command, "down", state], check=False)
        up = subprocess.run(
            [command, "up", state, "--nodes", str(NODES), "--driver"],
            stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "NODE_NPUS": str(NPUS)},
        )  # fmt: skip
        s3 = S3(assets / "versitygw", tmp_path_factory.mktemp("s3"))
        s3.start()
        stack.callback(s3.stop)
        graph = stack.enter_context(storage(scratch, missing))
        registry = Registry(graph.parent / "registry")
        stack.callback(registry.stop)
        insecure = f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
        (scratch / "registries.conf").write_text(insecure)
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(
            "CONTAINERS_REGISTRIES_CONF", str(scratch / "registries.conf")
        )
        values = KEYS | {
            "BUILDER": "buildah",
            "BUILD_ARGS": " ".join(arguments(scratch)[1]),
            "IMAGE": f"{registry.address}/team/jobs:0.1.0",
            "STORE": "s3://runs/e2e",
            "ENDPOINT": s3.endpoint,
            "SERVER": SERVER,
        }
        found = Nodes(state, Path(up.stdout.split()[-1]), home, s3, values)
        for number in range(NODES):
            found.label(f"node-{number}")
        print(found.run(block("install")))
        buildah("tag", values["IMAGE"], TAG)  # so that its layers are there next time
        buildah("rmi", values["IMAGE"])
        prune()
        yield found


def checkout(folder: Path) -> Path:
    """Copy what a user has checked out, and return where it is."""
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


class S3:
    """An S3 server with a bucket `runs`, where pods can reach it."""

    def __init__(self, program: Path, folder: Path) -> None:
        (folder / "runs").mkdir()
        with socket.socket() as probe:
            probe.bind((PODS_HOST, 0))
            self.port = probe.getsockname()[1]
        self.command = [program, "--port", f"{PODS_HOST}:{self.port}", "posix", folder]
        self.folder, self.endpoint = folder, f"http://{PODS_HOST}:{self.port}"

    def start(self) -> None:
        """Start it, on the port that it always has."""
        keys = {"ROOT_ACCESS_KEY": "test", "ROOT_SECRET_KEY": "testtest"}
        self.process = subprocess.Popen(
            self.command, env={**os.environ, **keys}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for("the S3 server", self._answers, 20)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((PODS_HOST, self.port)) == 0


@pytest.fixture(scope="session")
def calm(nodes: Any) -> Calm:
    return Calm(nodes)


@pytest.fixture
def start(nodes: Any, request: pytest.FixtureRequest) -> Any:
    made: list[Run] = []

    def begin(*words: str, change: Change | None = None) -> Run:
        # The parameters tell the tests apart, so it is the words before them that are cut.
        test, _, parameters = request.node.name.removeprefix("test_").lower().partition("[")
        name = re.sub(r"[^a-z0-9]+", "-", f"{test[:24]}-{parameters}").strip("-")
        made.append(Run(nodes, name, words or TWO, change))
        return made[-1]

    yield begin
    for run in made:
        nodes.kubectl(
            "delete", "job", run.name, "--ignore-not-found", "--force", "--grace-period=0"
        )
