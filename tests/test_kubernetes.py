"""Ways not to reach a cluster: each is one line with the way out. No API server is needed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.specs import INLINE_PROMPT_BYTES, TrainSpec
from launcher import cli
from launcher.backends import apiserver
from launcher.backends.apiserver import WAYS_OUT
from launcher.backends.kubernetes import Kubernetes
from launcher.errors import LauncherError, Misconfigured, Unreachable
from launcher.manifests import base, render
from launcher.plan import plan
from launcher.settings import Target

PLAN = plan(TrainSpec(), Target(image="i", store="s3://b/r"), name="cat-1", npus=1)
MANIFEST = render(PLAN, base("train"))


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def kubeconfig(path: Path, server: str, *, context: str = "test", **extra: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [{"name": context, "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": "secret-token"}}],
        "contexts": [
            {"name": context, "context": {"cluster": context, "user": "me", **extra}},
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def refused(context: str = "") -> LauncherError:
    with pytest.raises(LauncherError) as caught:
        Kubernetes(context).submit(PLAN, MANIFEST)
    error = caught.value
    assert "\n" not in error.text + error.hint
    assert error.hint
    assert "secret-token" not in error.text + error.hint
    assert "object at 0x" not in error.text
    return error


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_without_a_kubeconfig_both_ways_out_are_named() -> None:
    error = refused()
    assert isinstance(error, Unreachable)
    assert error.text == "cluster: there is no kubeconfig at ~/.kube/config"
    assert "--context" in error.hint
    assert "KUBECONFIG" in error.hint
    assert "--backend local" in error.hint


def test_a_kubeconfig_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    assert refused().text == "cluster: there is no kubeconfig at /nowhere/config"


def test_a_server_that_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = f"https://127.0.0.1:{free_port()}"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
    error = refused()
    assert isinstance(error, Unreachable)
    assert error.code == 69
    assert error.text == f"cluster {server}: [Errno 111] Connection refused"
    assert error.hint == WAYS_OUT
    assert isinstance(error.__cause__, Exception)


def test_a_host_name_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = "https://kubernetes.invalid:6443"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
    assert refused().text == f"cluster {server}: its host name is not known"


def test_a_server_that_never_answers_costs_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver, "TIMEOUT", (1, 1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = f"https://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        start = time.monotonic()
        error = refused()
    assert time.monotonic() - start < 3
    assert isinstance(error, Unreachable)
    assert error.text == f"cluster {server}: no answer in time"


@contextmanager
def answering(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """Serve fixed answers over HTTP: what no real API server of today would say."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plain = answers.get(self.path.partition("?")[0], (404, {"message": "no"}))
            status, body = answers.get(self.path, plain)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = {"major": "1", "minor": "30+", "gitVersion": "v1.30.4-cce.2"}
    with answering({"/version": (200, version)}) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        error = refused()
    assert isinstance(error, Misconfigured)
    assert error.text == (
        f"cluster {server}: is Kubernetes v1.30.4-cce.2, which ignores podFailurePolicy"
    )
    assert error.hint == "a cluster of 1.31 or newer is needed"


def test_a_server_in_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"/version": (503, b"upstream\nconnect error")}) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        error = refused()
    assert isinstance(error, Unreachable)
    assert error.text == f"cluster {server}: answered 503: upstream connect error"


@pytest.mark.parametrize("body", [b"<html>welcome</html>", [], {}, {"major": "1", "minor": ""}])
def test_something_else_that_answers(
    body: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering({"/version": (200, body)}) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        error = refused()
    assert isinstance(error, Unreachable)
    assert error.text == f"cluster {server}: what answers there is no Kubernetes API server"


def test_plain_http_where_tls_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({}) as server:
        tls = server.replace("http:", "https:")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", tls)))
        error = refused()
    assert isinstance(error, Unreachable)
    assert "SSL" in error.text


def test_a_context_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kubeconfig(tmp_path / "k", "https://127.0.0.1:1")
    monkeypatch.setenv("KUBECONFIG", str(path))
    error = refused("prod")
    assert isinstance(error, Misconfigured)
    assert error.text == f"context 'prod': not in {path}"
    assert error.hint == "--context, one of: test"


@pytest.mark.parametrize(
    "text",
    ["", "a: [", "[]", "text", "\0", "{}", "current-context: x", "contexts: 3\ncurrent-context: x",
     "contexts: [{name: x}]\ncurrent-context: x", "clusters: [3]\ncurrent-context: x",
     "contexts: [{name: x, context: 3}]\ncurrent-context: x",
     "contexts: [{name: x, context: {cluster: y, user: z}}]\nclusters: []\ncurrent-context: x"],
)  # fmt: skip
def test_a_kubeconfig_that_cannot_be_used(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    error = refused()
    assert isinstance(error, Misconfigured)
    assert str(path) in error.text


def test_bytes_that_are_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "k").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "k"))
    assert isinstance(refused(), Misconfigured)


def test_of_several_files_the_first_current_context_wins_as_with_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = kubeconfig(tmp_path / "1", "https://one.example", context="one", namespace="art")
    two = kubeconfig(tmp_path / "2", "https://two.example", context="two")
    monkeypatch.setenv("KUBECONFIG", f"{one}:{tmp_path / 'absent'}:{two}")
    first, second = Kubernetes(), Kubernetes("two")
    assert (first.server, first.namespace) == ("https://one.example", "art")
    assert (second.server, second.namespace) == ("https://two.example", "default")
    assert Kubernetes(namespace="mine").namespace == "mine"


NEW = {"/version": (200, {"major": "1", "minor": "34", "gitVersion": "v1.34.3"})}
JOBS, PODS = "/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"
CREATE, TRIAL = f"{JOBS}?fieldValidation=Strict", f"{JOBS}?fieldValidation=Strict&dryRun=All"
MADE = {"metadata": {"namespace": "default", "name": "long", "uid": "1"}}


@pytest.mark.parametrize(
    ("trial", "create", "code", "there"),
    [
        ((201, MADE), (201, MADE), 0, True),
        ((201, MADE), (409, {"message": "exists"}), 73, False),
        ((201, MADE), (500, {"message": "etcd"}), 69, True),  # the Job may exist all the same
        ((409, {"message": "exists"}), (201, MADE), 73, False),
        ((500, {"message": "etcd"}), (201, MADE), 69, False),
    ],
)
def test_long_prompts_are_in_the_store_before_the_job_and_taken_back_if_it_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    trial: Any,
    create: Any,
    code: int,
    there: bool,
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "p.txt").write_text("a cat\n" * (INLINE_PROMPT_BYTES // 6))
    monkeypatch.chdir(tmp_path)
    store = (tmp_path / "runs").as_uri()
    answers = {**NEW, PODS: (201, {}), TRIAL: trial, CREATE: create}
    with answering(answers) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        found = cli.main(
            ["submit", "infer", "--image", "i", "--store", store, "--prompts", "p.txt",
             "--name", "long"]
        )  # fmt: skip
    assert found == code
    assert [path.suffix for path in tmp_path.glob("runs/cache/prompts/*")] == [".jsonl"] * there
    out, err = capfd.readouterr()
    assert out == ("long\n" if code == 0 else "")
    assert "Traceback" not in err


def test_an_s3_store_need_not_be_reached_to_create_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("LAUNCHER_MAX_GRACE_SECONDS", "30")
    monkeypatch.setenv("LAUNCHER_STORE_SECRET", "store-keys")
    with answering({**NEW, PODS: (201, {}), JOBS: (201, MADE)}) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        code = cli.main(
            ["submit", "train", "--image", "i", "--store", "s3://b/r", "--name", "long"]
        )
    out, err = capfd.readouterr()
    assert (code, out) == (0, "long\n")
    told = err.splitlines()
    assert any(row.startswith("warning: max_grace_seconds 30: ") for row in told)
    assert "kubernetes: created job long in namespace default" in told


def test_prompts_that_the_store_refuses_keep_the_job_from_being_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n" * (INLINE_PROMPT_BYTES // 6))
    monkeypatch.chdir(tmp_path)
    store = f"file://{tmp_path}/not-mounted"
    with answering({**NEW, PODS: (201, {}), TRIAL: (201, MADE), CREATE: (500, {})}) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "k", server)))
        arguments = ["submit", "infer", "--image", "i", "--store", store, "--prompts", "p.txt"]
        assert cli.main(arguments) == 78
    assert "is not mounted here" in capfd.readouterr().err
