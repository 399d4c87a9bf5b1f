"""Ways not to be served by a cluster: one line, the right exit code, nothing half-created."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import Cluster, control_plane, process, wait_until_ready

from launcher import cli, clusterruns
from launcher.backends import apiserver, kubernetes

pytestmark = pytest.mark.cluster

SUBMIT = ("submit", "train", "--image", "registry.example/jobs:1", "--store", "s3://bucket/runs")
VERBS = (("list",), ("status", "cat-1"), ("status", "cat-1", "--watch"), ("cancel", "cat-1"),
         (*SUBMIT, "--name", "cat-1"))  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def refused(capsys, namespace) -> Callable[..., tuple[str, str]]:
    """Return a function that runs a verb and returns its one line of error and of hint."""

    def run(code: int, *words: str, namespace: str = namespace) -> tuple[str, str]:
        capsys.readouterr()
        found = cli.main(
            [*words, "--backend", "kubernetes", *(["-n", namespace] * bool(namespace))]
        )
        out, err = capsys.readouterr()
        assert (found, out) == (code, ""), err
        assert "Traceback" not in err
        lines = [row for row in err.splitlines() if not row.startswith("warning: ")]
        (error,) = (row for row in lines if row.startswith("error: "))
        (hint,) = (row for row in lines if row.startswith("hint: "))
        return error, hint

    return run


def edited(cluster: Any, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_namespace_that_is_missing(refused, verb) -> None:
    error, hint = refused(78, *verb, namespace="no-such-place")
    assert "no-such-place" in error
    assert "-n" in hint


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_context_that_is_missing(refused, verb) -> None:
    error, hint = refused(78, *verb, "--context", "nowhere")
    assert "context 'nowhere': not in " in error
    assert "one of: test" in hint


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_token_that_nobody_knows(refused, cluster, tmp_path, monkeypatch, verb) -> None:
    path = cluster.kubeconfig_of(tmp_path / "k", "unknown")
    monkeypatch.setenv("KUBECONFIG", str(path))
    error, hint = refused(77, *verb)
    assert "does not accept the credentials of this context" in error
    assert "log in again" in hint


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_an_account_without_rights(
    refused, cluster, namespace, tmp_path, monkeypatch, verb
) -> None:
    from kubernetes import client

    made = client.CoreV1Api(cluster.api()).create_namespaced_service_account_token(
        "default", namespace, {"spec": {"audiences": [], "expirationSeconds": 600}}
    )
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "k", made.status.token)))
    error, hint = refused(77, *verb)
    assert 'resource "' in error
    assert f'in the namespace "{namespace}"' in error
    assert "Role (k8s/base/rbac.yaml): {apiGroups: [" in hint


@pytest.fixture
def foreign(namespace, kubectl) -> str:
    """Return the name of a Job that somebody else made."""
    main = {"name": "main", "image": "none"}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [main]}}}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "theirs"}, "spec": spec}
    kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(body))
    return "theirs"


@pytest.mark.parametrize("verb", [("status",), ("status", "--watch"), ("cancel",),
                                  ("cancel", "--now"), ("logs",)], ids=" ".join)  # fmt: skip
def test_a_job_of_somebody_else(refused, foreign, kubectl, namespace, verb) -> None:
    error, hint = refused(78, verb[0], foreign, *verb[1:])
    assert error == (
        "error: job 'theirs': was not submitted by the launcher"
        " (no label app.kubernetes.io/managed-by=launcher)"
    )
    assert "kubectl describe job/theirs" in hint
    told = kubectl("get", "job", foreign, "-n", namespace, "-o", "jsonpath={.metadata}")
    assert "deletionTimestamp" not in told


def test_the_job_of_somebody_else_is_no_run_and_keeps_its_name(refused, foreign, capsys) -> None:
    error, _ = refused(73, *SUBMIT, "--name", foreign)
    assert "run 'theirs': exists" in error
    refused(78, *SUBMIT, "--name", foreign, "--idempotent")
    assert cli.main(["list", "--json", "--backend", "kubernetes"]) == 0
    assert "theirs" not in capsys.readouterr().out


def test_a_server_that_never_answers_is_named_within_seconds(
    refused, cluster, tmp_path, monkeypatch
) -> None:
    import socket

    monkeypatch.setattr(apiserver, "TIMEOUT", (1, 1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = f"https://127.0.0.1:{listener.getsockname()[1]}"

        def change(document: dict[str, Any]) -> None:
            document["clusters"][0]["cluster"]["server"] = server

        monkeypatch.setenv("KUBECONFIG", str(edited(cluster, tmp_path / "k", change)))
        for verb in (("list",), ("status", "cat-1"), ("cancel", "cat-1")):
            error, _ = refused(69, *verb)
            assert error == f"error: cluster {server}: no answer in time"


# --- certificates


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def certificate(folder: Path, name: str, subject: str, days: int) -> None:
    """Sign a client's certificate; days of -1 make one that expired yesterday."""
    openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", subject,
            "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", str(days), "-out", f"{name}.crt")  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_certificate_that_has_expired(
    refused, certified, cluster, tmp_path, monkeypatch, verb
) -> None:
    for name, code in (("fresh", 0), ("expired", 77)):

        def change(document: dict[str, Any], name: str = name) -> None:
            document["users"][0]["user"] = {
                "client-certificate": str(certified / f"{name}.crt"),
                "client-key": str(certified / f"{name}.key"),
            }

        monkeypatch.setenv("KUBECONFIG", str(edited(cluster, tmp_path / name, change)))
        if code == 0:
            assert cli.main(["list", "--backend", "kubernetes", "-n", "default"]) == 0
        else:
            error, hint = refused(code, *verb)
            assert "does not accept the credentials of this context" in error
            assert "expired" in hint


def test_a_server_whose_certificate_is_another_authoritys(
    refused, cluster, tmp_path, monkeypatch
) -> None:
    openssl(tmp_path, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other",
            "-days", "2", "-keyout", "other.key", "-out", "other.crt")  # fmt: skip

    def change(document: dict[str, Any]) -> None:
        document["clusters"][0]["cluster"]["certificate-authority"] = str(tmp_path / "other.crt")

    monkeypatch.setenv("KUBECONFIG", str(edited(cluster, tmp_path / "k", change)))
    error, hint = refused(78, "list")
    assert "its certificate is not trusted: " in error
    assert "certificate-authority" in hint


@pytest.fixture(scope="session")
def certified(cluster: Cluster, missing) -> Path:
    """Return a folder with a client's certificates that the API server knows."""
    folder = cluster.kubeconfig.parent
    if cluster.lent or not (folder / "ca.key").exists():
        missing("cluster", "certificates can be signed for a cluster of our own only")
    certificate(folder, "fresh", "/O=system:masters/CN=me", 2)
    certificate(folder, "expired", "/O=system:masters/CN=me", -1)
    return folder


# --- answers that are lost


class Forwarding(ThreadingHTTPServer):
    """A road to the real API server that can lose answers."""

    daemon_threads = True

    def __init__(self, cluster: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        document = yaml.safe_load(cluster.kubeconfig.read_text())
        row = document["clusters"][0]["cluster"]
        self.upstream = urlsplit(row["server"])
        self.trust = ssl.create_default_context(cafile=row["certificate-authority"])
        self.token = document["users"][0]["user"]["token"]
        self.loses: Callable[[str, str], bool] = lambda method, path: False
        self.passes: Callable[[str, str], bool] = lambda method, path: True


class _Forward(BaseHTTPRequestHandler):
    server: Forwarding

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.passes(self.command, self.path):
            self.close_connection = True
            return
        road = http.client.HTTPSConnection(
            self.server.upstream.hostname or "", self.server.upstream.port,
            context=self.server.trust, timeout=30,
        )  # fmt: skip
        kept = {
            key: value for key, value in self.headers.items() if key in ("Accept", "Content-Type")
        }
        road.request(self.command, self.path, body or None,
                     kept | {"Authorization": f"Bearer {self.server.token}"})  # fmt: skip
        answer = road.getresponse()
        data = answer.read()
        if self.server.loses(self.command, self.path):
            self.close_connection = True  # it was done, and nobody hears of it
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _pass  # noqa: N815  # the names that http.server calls

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def road(cluster, tmp_path, monkeypatch, namespace) -> Iterator[Forwarding]:
    monkeypatch.setattr(kubernetes, "LOOKS", (0, 0.1, 0.1))
    with Forwarding(cluster) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def change(document: dict[str, Any]) -> None:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            document["clusters"][0]["cluster"] = {"server": address}

        monkeypatch.setenv("KUBECONFIG", str(edited(cluster, tmp_path / "road", change)))
        yield server
        server.shutdown()


def creates(method: str, path: str) -> bool:
    return method == "POST" and path.split("?")[0].endswith("/jobs") and "dryRun" not in path


def jobs(kubectl: Any, namespace: str) -> list[str]:
    return kubectl("get", "jobs", "-n", namespace, "-o", "name").split()


def test_a_create_whose_answer_is_lost_has_happened_once(road, namespace, kubectl, capsys) -> None:
    road.loses = creates
    code = cli.main([*SUBMIT, "--name", "cat-1", "-n", namespace])
    assert (code, capsys.readouterr().out) == (0, "cat-1\n")
    assert jobs(kubectl, namespace) == ["job.batch/cat-1"]


def test_a_create_that_never_arrived_is_told(road, namespace, kubectl, refused) -> None:
    road.passes = lambda method, path: not creates(method, path)
    _, hint = refused(69, *SUBMIT, "--name", "cat-1")
    assert "run 'cat-1' was not created; submit it again" in hint
    assert jobs(kubectl, namespace) == []


def test_where_nothing_can_be_known_the_way_to_find_out_is_told(
    road, namespace, kubectl, refused, capsys
) -> None:
    gone = threading.Event()

    def loses(method: str, path: str) -> bool:
        if creates(method, path):
            gone.set()
        return gone.is_set()

    road.loses = loses
    _, hint = refused(69, *SUBMIT, "--name", "cat-1")
    assert "it may exist: launcher status cat-1, or submit again with --idempotent" in hint
    road.loses = lambda method, path: False
    again = [*SUBMIT, "--name", "cat-1", "-n", namespace, "--idempotent"]
    assert cli.main(again) == 0
    assert jobs(kubectl, namespace) == ["job.batch/cat-1"]


# --- an API server that goes away in the middle


@pytest.fixture
def own(tmp_path, missing) -> Iterator[Cluster]:
    """Yield an API server that no other test needs."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        missing("cluster", "KUBEBUILDER_ASSETS names no directory with etcd and kube-apiserver")
    folder = tmp_path / "own"
    folder.mkdir()
    with control_plane(Path(assets), folder) as kubeconfig:
        made = Cluster(kubeconfig)
        made.make_default_account("default")
        yield made


@contextmanager
def started_again(cluster: Cluster) -> Iterator[None]:
    """Start the API server again, as it was, and wait until it answers."""
    folder = cluster.kubeconfig.parent
    known = json.loads((folder / "kube-apiserver.json").read_text())
    program = Path(os.environ["KUBEBUILDER_ASSETS"]) / "kube-apiserver"
    log = folder / "again.log"
    token = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]["token"]
    with process(log, program, known["flags"]) as child:
        wait_until_ready(child, known["url"], folder / "apiserver.crt", token, log)
        yield


def kill(cluster: Cluster) -> None:
    known = json.loads((cluster.kubeconfig.parent / "kube-apiserver.json").read_text())
    os.kill(known["pid"], signal.SIGKILL)


def test_a_watch_lives_through_a_restart(own, monkeypatch, capsys) -> None:
    from kubernetes import client

    monkeypatch.setenv("KUBECONFIG", str(own.kubeconfig))
    assert cli.main([*SUBMIT, "--name", "cat-1", "-n", "default"]) == 0
    over = threading.Event()

    def restart() -> None:
        kill(own)
        time.sleep(3)
        with started_again(own):
            now = "2026-01-01T00:00:00Z"
            row = {"type": "Failed", "status": "True", "lastTransitionTime": now,
                   "reason": "BackoffLimitExceeded", "message": "it was enough"}  # fmt: skip
            status = {"startTime": now, "conditions": [{**row, "type": "FailureTarget"}, row]}
            client.BatchV1Api(own.api()).patch_namespaced_job_status(
                "cat-1", "default", {"status": status}
            )
            over.wait(60)

    thread = threading.Timer(1, restart)
    thread.start()
    capsys.readouterr()
    try:
        code = cli.main(["status", "cat-1", "--watch", "--json", "-n", "default"])
    finally:
        over.set()
    thread.join()
    out, err = capsys.readouterr()
    states = [json.loads(line)["state"] for line in out.splitlines()]
    assert (code, states[0], states[-1]) == (70, "pending", "failed"), err
    assert err.count("waiting for it") == 1
    assert err.count("the cluster answers again") == 1


def test_a_server_that_stays_away_is_given_up(own, monkeypatch, capsys) -> None:
    monkeypatch.setenv("KUBECONFIG", str(own.kubeconfig))
    monkeypatch.setattr(clusterruns, "AWAY_SECONDS", 1)
    for verb in (("status", "cat-1", "--watch"), (*SUBMIT, "--name", "cat-2", "--wait")):
        if verb[0] == "status":
            assert cli.main([*SUBMIT, "--name", "cat-1", "-n", "default"]) == 0
            threading.Timer(1, kill, args=(own,)).start()
        capsys.readouterr()
        code = cli.main([*verb, "-n", "default"])
        err = capsys.readouterr().err
        assert code == 69, err
        assert err.count("error: cluster https://127.0.0.1:") == 1
