"""A real API server for the tests marked `cluster`.

Started from an envtest-style directory, KUBEBUILDER_ASSETS with etcd and kube-apiserver, on
loopback and free ports; or, with USE_EXISTING_CLUSTER=true, the throw-away cluster of KUBECONFIG
(envtest's own convention; it needs an administrator and is left with nothing but events).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

Missing = Callable[[str, str], NoReturn]
K8S = Path(__file__).parents[2] / "k8s"


@dataclass(frozen=True)
class Cluster:
    """An API server and how to speak to it as its administrator."""

    kubeconfig: Path
    lent: bool = False
    """Whether it outlives the tests, which then clean up; one of our own just ends."""

    def api(self):
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    def kubelet(self, node: str):
        """Return a client that is the kubelet of a node, which alone may write its pods' status."""
        client = self.api()
        client.set_default_header("Impersonate-User", f"system:node:{node}")
        client.set_default_header("Impersonate-Group", "system:nodes")
        return client

    def make_default_account(self, namespace: str) -> None:
        """Do what the controller manager would; there may be none."""
        from kubernetes import client

        core = client.CoreV1Api(self.api())
        try:
            core.create_namespaced_service_account(namespace, {"metadata": {"name": "default"}})
        except client.ApiException as error:
            if error.status != 409:
                raise

    def kubeconfig_of(self, path: Path, token: str) -> Path:
        """Write a kubeconfig of the same cluster for another user."""
        document = yaml.safe_load(self.kubeconfig.read_text())
        current = next(
            row for row in document["contexts"] if row["name"] == document["current-context"]
        )
        current["context"]["user"] = "other"
        document["users"] = [{"name": "other", "user": {"token": token}}]
        path.write_text(yaml.safe_dump(document))
        return path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, missing: Missing) -> Iterator[Cluster]:
    if os.environ.get("USE_EXISTING_CLUSTER") == "true":
        if not os.environ.get("KUBECONFIG"):
            missing("cluster", "USE_EXISTING_CLUSTER is set and KUBECONFIG is not")
        yield Cluster(Path(os.environ["KUBECONFIG"]), lent=True)
        return
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        missing("cluster", "KUBEBUILDER_ASSETS names no directory with etcd and kube-apiserver")
    for name in ("etcd", "kube-apiserver"):
        if not (Path(assets) / name).exists():
            missing("cluster", f"KUBEBUILDER_ASSETS={assets} has no {name}")
    if not shutil.which("openssl"):
        missing("cluster", "openssl is needed for the key of the service accounts")
    with control_plane(Path(assets), tmp_path_factory.mktemp("cluster")) as kubeconfig:
        yield Cluster(kubeconfig)


@contextmanager
def control_plane(assets: Path, folder: Path) -> Iterator[Path]:
    etcd_port, peer_port, port = free_ports(3)
    etcd = f"http://127.0.0.1:{etcd_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    token = secrets.token_hex(16)
    tokens, key = folder / "tokens.csv", folder / "sa.key"
    tokens.write_text(f"{token},admin,admin,system:masters\n")
    tokens.chmod(0o600)
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    # Signs certificates of clients, for the tests that want some.
    signed = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test-ca",
              "-keyout", folder / "ca.key", "-out", folder / "ca.crt"]  # fmt: skip
    subprocess.run(signed, check=True, capture_output=True)
    with ExitStack() as stack:
        etcd_flags = flags(
            data_dir=folder / "etcd",
            unsafe_no_fsync="true",
            listen_client_urls=etcd,
            advertise_client_urls=etcd,
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            initial_cluster=f"default={peer}",
            log_level="warn",
        )
        stack.enter_context(process(folder / "etcd.log", assets / "etcd", etcd_flags))
        log = folder / "kube-apiserver.log"
        server_flags = flags(
            etcd_servers=etcd,
            cert_dir=folder,
            bind_address="127.0.0.1",
            advertise_address="127.0.0.1",
            secure_port=port,
            endpoint_reconciler_type="none",
            authorization_mode="Node,RBAC",
            token_auth_file=tokens,
            client_ca_file=folder / "ca.crt",
            service_account_issuer="https://kubernetes.default.svc",
            service_account_key_file=key,
            service_account_signing_key_file=key,
            service_cluster_ip_range="10.0.0.0/24",
            allow_privileged="true",  # as clusters have it: else policies would not be asked
        )
        server = stack.enter_context(process(log, assets / "kube-apiserver", server_flags))
        # For tests that stop it and start it again.
        known = {"pid": server.pid, "url": f"https://127.0.0.1:{port}", "flags": server_flags}
        (folder / "kube-apiserver.json").write_text(json.dumps(known))
        url = f"https://127.0.0.1:{port}"
        authority = folder / "apiserver.crt"  # made by the server itself, in --cert-dir
        wait_until_ready(server, url, authority, token, log)
        kubeconfig = folder / "kubeconfig"
        write_kubeconfig(kubeconfig, url, authority, token)
        yield kubeconfig


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            found.append(listener.getsockname()[1])
        return found


def flags(**values: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


@contextmanager
def process(log: Path, program: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(
            [program, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_until_ready(
    child: subprocess.Popen, url: str, authority: Path, token: str, log: Path
) -> None:
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        try:
            context = ssl.create_default_context(cafile=authority)
            urllib.request.urlopen(request, timeout=5, context=context).close()
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
        else:
            return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    pytest.fail(f"kube-apiserver did not come up:\n{tail}", pytrace=False)


def write_kubeconfig(path: Path, url: str, authority: Path, token: str) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": url, "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    }
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)


@pytest.fixture
def new_namespace(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Return a function that makes a namespace, labelled as asked; all are deleted at the end."""
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())
    made: list[str] = []

    def make(**labels: str) -> str:
        name = f"test-{secrets.token_hex(4)}"
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
        made.append(name)
        cluster.make_default_account(name)
        return name

    yield make
    for name in made:
        core.delete_namespace(name)


@pytest.fixture
def namespace(cluster: Cluster, new_namespace: Callable[..., str], monkeypatch) -> str:
    """Return a fresh namespace; the process's KUBECONFIG is the cluster's."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return new_namespace()


@dataclass(frozen=True)
class Kubectl:
    """kubectl, speaking to the cluster as its administrator."""

    program: Path
    kubeconfig: Path
    cache: Path

    def run(self, *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.cache}",
             *map(str, words)],
            input=stdin, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def __call__(self, *words: object, stdin: str = "") -> str:
        """Return its output; a test fails where it does."""
        done = self.run(*words, stdin=stdin)
        if done.returncode:
            pytest.fail(f"kubectl {' '.join(map(str, words))}: {done.stderr}", pytrace=False)
        return done.stdout

    def rendered(self, folder: Path, kind: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kustomization, those of one kind if it is named."""
        found = yaml.safe_load_all(self("kustomize", folder))
        return [row for row in found if row["kind"] == (kind or row["kind"])]

    def wait_for_policy(self, namespace: str) -> None:
        """Wait until the server, which takes in a policy some moments later, asks it there."""
        metadata = {"name": "policy", "namespace": namespace}
        spec = {"containers": [{"name": "main", "image": "none"}]}
        pod = yaml.dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        deadline = time.monotonic() + 30
        told = ""
        while "ValidatingAdmissionPolicy" not in told:
            assert time.monotonic() < deadline, f"the policy never came into force: {told}"
            told = self.run("create", "--dry-run=server", "-f", "-", stdin=pod).stderr


@pytest.fixture(scope="session")
def kubectl(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, missing: Missing
) -> Kubectl:
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        missing("cluster", "no kubectl beside the interpreter nor on the PATH (the [dev] extra)")
    return Kubectl(Path(found), cluster.kubeconfig, tmp_path_factory.mktemp("kubectl"))


@pytest.fixture(scope="session")
def kustomized(cluster: Cluster, kubectl: Kubectl, missing: Missing) -> Iterator[str]:
    """Return the namespace that `kubectl apply -k k8s/` makes, with its policy in force."""
    (found,) = kubectl.rendered(K8S, "Namespace")
    namespace = str(found["metadata"]["name"])
    if cluster.lent and not kubectl.run("get", "namespace", namespace).returncode:
        missing("cluster", f"namespace {namespace} is there already, and would be deleted")
    kubectl("apply", "-k", K8S)
    cluster.make_default_account(namespace)
    kubectl.wait_for_policy(namespace)
    yield namespace
    if cluster.lent:
        kubectl("delete", "--wait=false", "-k", K8S)


@pytest.fixture(scope="session")
def crds(cluster: Cluster, kubectl: Kubectl, missing: Missing) -> Iterator[None]:
    """Install the CustomResourceDefinitions of Kueue and Volcano, from the folder CRDS."""
    folder = os.environ.get("CRDS", "")
    for name in ("clusterqueues.yaml", "podgroups.yaml"):
        if not folder or not list(Path(folder).glob(f"*_{name}")):
            missing("cluster", f"CRDS={folder} has no CRDs of Kueue and Volcano (*_{name})")
    there = not kubectl.run("get", "-f", folder).returncode
    if not there:
        kubectl("apply", "--server-side", "-f", folder)
        kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", folder)
    yield
    if cluster.lent and not there:
        kubectl("delete", "--wait=false", "-f", folder)


@dataclass(frozen=True)
class Component:
    """A further process of the control plane, which a test may stop and start again."""

    child: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="session")
def component(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, missing: Missing
) -> Iterator[Callable[..., Component | None]]:
    """Return a function that starts a process of KUBEBUILDER_ASSETS; all end with the session.

    A cluster that was lent (USE_EXISTING_CLUSTER) has its own: nothing is started there.
    """
    with ExitStack() as stack:

        def start(name: str, **values: object) -> Component | None:
            if cluster.lent:
                return None
            program = Path(os.environ["KUBEBUILDER_ASSETS"]) / name
            if not program.exists():
                missing("cluster", f"KUBEBUILDER_ASSETS={program.parent} has no {name}")
            folder = tmp_path_factory.mktemp(name)
            values = {"kubeconfig": cluster.kubeconfig} | values
            log = folder / "log"
            child = stack.enter_context(process(log, program, flags(**values)))
            return Component(child, log)

        yield start


@pytest.fixture(scope="session")
def controllers(cluster: Cluster, component: Callable[..., Component | None]) -> None:
    """Start the controllers: Jobs get pods, owned objects are collected, namespaces go."""
    from kubernetes import client

    (port,) = free_ports(1)
    folder = cluster.kubeconfig.parent
    component(
        "kube-controller-manager",
        bind_address="127.0.0.1",
        secure_port=port,
        cert_dir=folder,
        root_ca_file=folder / "apiserver.crt",
        service_account_private_key_file=folder / "sa.key",
        use_service_account_credentials="true",
        leader_elect="false",
    )
    core = client.CoreV1Api(cluster.api())
    wait_for(lambda: any(
        row.metadata.name == "default"
        for row in core.list_namespaced_service_account("default").items
    ), "the account that the controllers make")  # fmt: skip


@pytest.fixture(scope="session")
def scheduler(cluster: Cluster, component: Callable[..., Component | None]) -> None:
    """Start the scheduler: pods are placed, or told why not."""
    (port,) = free_ports(1)
    folder = cluster.kubeconfig.parent
    component(
        "kube-scheduler",
        bind_address="127.0.0.1",
        secure_port=port,
        cert_dir=folder,
        leader_elect="false",
    )


FAKE = {"kwok.x-k8s.io/node": "fake"}
"""Annotation of the nodes that KWOK plays."""


@pytest.fixture(scope="session")
def kwok(cluster: Cluster, component: Callable[..., Component | None]) -> None:
    """Start KWOK: it plays each node annotated FAKE, and its pods as stages.yaml says."""
    (port,) = free_ports(1)
    ((key, value),) = FAKE.items()
    component(
        "kwok",
        config=Path(__file__).with_name("stages.yaml"),
        manage_all_nodes="false",
        manage_nodes_with_annotation_selector=f"{key}={value}",
        server_address=f"127.0.0.1:{port}",
    )


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> Any:
    """Return what the condition gives once that is true; a test fails where it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain for {what}", pytrace=False)
        time.sleep(0.1)
    return found


@pytest.fixture
def new_node(cluster: Cluster, kwok: None) -> Iterator[Callable[..., str]]:
    """Return a function that makes a node for KWOK to play; all are deleted at the end."""
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())
    made: list[str] = []

    def make(
        npus: int = 8, resource: str = "huawei.com/Ascend910", cpu: int = 192,
        memory: str = "1500Gi", taints: Any = (), **labels: str,
    ) -> str:  # fmt: skip
        name = f"node-{secrets.token_hex(4)}"
        room = {
            "cpu": str(cpu), "memory": memory, "ephemeral-storage": "3Ti", "pods": "110",
            resource: str(npus),
        }  # fmt: skip
        known = {"kubernetes.io/arch": "arm64", "kubernetes.io/hostname": name}
        core.create_node(
            {
                "metadata": {"name": name, "annotations": FAKE, "labels": known | labels},
                "spec": {"taints": list(taints)},
                "status": {"capacity": room, "allocatable": room},
            }
        )
        made.append(name)
        wait_for(lambda: ready(core.read_node(name)), f"KWOK's {name}")
        return name

    yield make
    for name in made:
        core.delete_node(name)


def ready(node: Any) -> bool:
    rows = node.status.conditions or ()
    return any(row.type == "Ready" and row.status == "True" for row in rows)


@pytest.fixture(scope="session")
def explaining(
    cluster: Cluster, controllers: None, scheduler: None, kwok: None, missing: Missing
) -> Callable[..., Any]:
    """Return a context manager that lends a stage: a namespace and nodes of fixed names."""
    from kubernetes import client
    from stagehand import Stage

    from launcher.backends.apiserver import ApiServer

    @contextmanager
    def lent() -> Iterator[Any]:
        core = client.CoreV1Api(cluster.api())
        if cluster.lent and core.list_node().items:
            missing("cluster", "the cluster has nodes of its own, and lines would name them")
        wait_for(lambda: not core.list_node().items, "the end of other tests' nodes")
        namespace = f"test-{secrets.token_hex(4)}"
        core.create_namespace({"metadata": {"name": namespace}})
        cluster.make_default_account(namespace)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
            stage = Stage(ApiServer(namespace=namespace), cluster.api(), namespace)
            try:
                yield stage
            finally:
                for name in stage.nodes:
                    core.delete_node(name)
                core.delete_namespace(namespace)

    return lent


@pytest.fixture(scope="session")
def api_server(cluster: Cluster, missing: Missing) -> Iterator[Any]:
    """Return the API server as something that a test may kill for a while (outages.py)."""
    from outages import ApiServerProcess

    if cluster.lent:
        missing("cluster", "the API server of a cluster that is lent cannot be killed")
    server = ApiServerProcess(cluster)
    yield server
    server.end()
