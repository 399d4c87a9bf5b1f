"""Real nodes with the image on them, an S3 server that pods reach, the launcher as users run it.

NODES_COMMAND names a program that makes a throw-away cluster with real nodes on this machine:
`up DIR --nodes N --driver` prints an administrator's kubeconfig, `down DIR` ends everything. Its
nodes' containerd listen on DIR/containerd-N.sock; pods reach this machine at PODS_HOST (10.88.0.1).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from building import ROOT, TAG, build, buildah, pip_settings, storage

LAUNCHER = str(Path(sys.executable).with_name("launcher"))
NAMESPACE = "diffusion-jobs"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest"}
PODS_HOST = os.environ.get("PODS_HOST", "10.88.0.1")
NODES, NPUS = 2, 2
MEMORY = "6Gi"
"""Of a pod; what the launcher asks for at least is for NPUs and their compiler."""
SERVER = "card-910b-2"
"""A server of two NPUs: two nodes of it are a world of four workers, which two cores can bear."""


@dataclass
class Nodes:
    """A cluster with real nodes, and a user's folder to run the launcher in."""

    state: Path
    kubeconfig: Path
    home: Path
    s3: S3
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
        """Start it again as it was."""
        with (self.state / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                self.services.pop(name), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        (self.state / f"{name}.pid").write_text(f"{child.pid}\n")

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
        return {**os.environ, **KEYS, "KUBECONFIG": str(self.kubeconfig)}

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

    def submit(self, name: str, *words: str) -> None:
        """Create the Job that the launcher prints, with less memory: nodes share this machine's."""
        job = yaml.safe_load(self.launch(*words, "--name", name, "--dry-run", "-o", "yaml"))
        [main] = job["spec"]["template"]["spec"]["containers"]
        for kind in ("requests", "limits"):
            main["resources"][kind]["memory"] = MEMORY
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
        rows = self.get("pods", "-l", f"batch.kubernetes.io/job-name={run}")["items"]
        label = "batch.kubernetes.io/job-completion-index"
        here = [row for row in rows if not row["metadata"].get("deletionTimestamp")]
        return sorted(here, key=lambda row: row["metadata"]["labels"][label])

    def words(self) -> str:
        """Return what there is to see, for a test that fails."""
        pods = self.kubectl("get", "pods", "-o", "wide", check=False)
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
        return f"{pods}\n{events[-2500:]}"


def alive(pid: int) -> bool:
    """Say whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: str, ask: Callable[[], Any], seconds: float = 180) -> Any:
    """Return the first true answer."""
    until = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="session")
def archive(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, str], NoReturn]
) -> Iterator[Path]:
    """Build the image, or find it built, and yield it as a file that a node can import."""
    scratch = tmp_path_factory.mktemp("archive")
    with storage(scratch, missing):
        build(pip_settings(scratch))
        path = scratch / "image.tar"
        how = ("--compression-format", "zstd", "--compression-level", "1")
        buildah("push", "--quiet", *how, TAG, f"oci-archive:{path}:{TAG}")
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def nodes(
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str, str], NoReturn],
) -> Iterator[Nodes]:
    command = os.environ.get("NODES_COMMAND", "")
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", ""))
    if not command:
        missing("e2e", "NODES_COMMAND names no program that makes a cluster with real nodes")
    for program in ("containerd", "ctr", "runc", "kubectl", "gcc"):
        if shutil.which(program) is None:
            missing("e2e", f"real nodes need {program}")
    if not (assets / "versitygw").exists():
        missing("e2e", f"KUBEBUILDER_ASSETS={assets} has no versitygw")
    state = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, state, ignore_errors=True)  # nodes unpack the image
        stack.callback(subprocess.run, [command, "down", state], check=False)
        up = subprocess.run(
            [command, "up", state, "--nodes", str(NODES), "--driver"],
            stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "NODE_NPUS": str(NPUS)},
        )  # fmt: skip
        for number in range(NODES):
            ctr = ["ctr", "--address", state / f"containerd-{number}.sock", "-n", "k8s.io"]
            subprocess.run(
                [*ctr, "images", "import", archive], check=True, stdout=subprocess.DEVNULL
            )
        home = tmp_path_factory.mktemp("home")
        s3 = S3(assets / "versitygw", tmp_path_factory.mktemp("s3"))
        s3.start()
        stack.callback(s3.stop)
        found = Nodes(state, Path(up.stdout.split()[-1]), home, s3)
        install(found)
        yield found


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


def install(nodes: Nodes) -> None:
    """Do what the README has an administrator do once, and a user write into launcher.toml."""
    nodes.kubectl("apply", "-k", str(ROOT / "k8s"))
    literals = [f"--from-literal={key}={value}" for key, value in KEYS.items()]
    nodes.kubectl("create", "secret", "generic", "store-keys", *literals)
    for number in range(NODES):
        label = f"accelerator-type={SERVER}"
        nodes.kubectl("label", "node", f"node-{number}", label, "--overwrite")
    settings = {
        "backend": "kubernetes", "namespace": NAMESPACE, "image": TAG, "store": "s3://runs/e2e",
        "store_endpoint": nodes.s3.endpoint, "store_secret": "store-keys",
        "server": SERVER, "service_account": "job",
        "cpu_per_npu": 1, "memory_per_npu_gib": 13, "rendezvous_minutes": 10,
    }  # fmt: skip
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (nodes.home / "launcher.toml").write_text("".join(lines))
