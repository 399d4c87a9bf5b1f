"""`launcher doctor --pod`: its pod on a real API server and scheduler, its container played."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import wait_for

from launcher import cli
from launcher.backends import storepod

pytestmark = pytest.mark.cluster

TYPE = {"accelerator-type": "module-910b-8"}
DOCTORS = "app.kubernetes.io/component=doctor"
Play = Callable[[Any], None]


def report(**wrong: str) -> str:
    """Return what jobs.doctor leaves in its termination message."""
    rows = [
        {"check": name, "ok": name not in wrong, "text": wrong.get(name, "")}
        for name in ("PUT", "GET", "list", "multipart", "DELETE")
    ]
    return json.dumps({"works": not wrong, "machine": "aarch64", "checks": rows})


@pytest.fixture
def core(cluster) -> Any:
    from kubernetes import client

    return client.CoreV1Api(cluster.api())


@pytest.fixture
def node(core, new_node, controllers, scheduler) -> str:
    """Return the one node with NPUs; KWOK plays it."""
    name = str(new_node(**TYPE))
    wait_for(lambda: not core.read_node(name).spec.taints, f"{name} to be taken as ready")
    return name


@pytest.fixture
def played(core, kustomized) -> Callable[..., Any]:
    """Return a context in which a pod of doctor is played, once it is there and on a node."""

    @contextmanager
    def around(play: Play) -> Iterator[list[Any]]:
        seen: list[Any] = []
        over = threading.Event()

        def watch() -> None:
            while not over.is_set() and not seen:
                for pod in living(core, kustomized):
                    if pod.spec.node_name:
                        play(pod)
                        seen.append(pod)
                time.sleep(0.05)

        player = threading.Thread(target=watch)
        player.start()
        try:
            yield seen
        finally:
            over.set()
            player.join(30)

    return around


@pytest.fixture
def ask(cluster, kustomized, monkeypatch, capfd, tmp_path) -> Callable[..., tuple[int, Any]]:
    """Return a function that runs `doctor --pod` there and gives its code and the pod's line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setattr(storepod, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(storepod, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(storepod, "LIFE_SECONDS", 20)
    for key, value in {
        "namespace": kustomized, "store": "file:///data/store", "service_account": "job",
        "image": "registry.example/jobs:1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LAUNCHER_{key.upper()}", value)

    def call() -> tuple[int, Any]:
        code = cli.main(["doctor", "--pod", "--json"])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        document = json.loads(out)
        (line,) = (row for row in document["checks"] if row["check"] == "pod")
        first = next((row for row in document["checks"] if row["state"] == "fail"), None)
        assert (line["state"] == "fail") == (first == line) == bool(code), document["checks"]
        return code, line

    return call


def living(core: Any, namespace: str) -> list[Any]:
    """Return doctor's pods, but for those that are on their way out."""
    rows = core.list_namespaced_pod(namespace, label_selector=DOCTORS).items
    return [row for row in rows if not row.metadata.deletion_timestamp]


def ends(core: Any, code: int, said: str) -> Play:
    """Return what lets KWOK end a pod with that code and termination message."""

    def play(pod: Any) -> None:
        notes = {"play/exit": str(code), "play/said": said}
        core.patch_namespaced_pod(
            pod.metadata.name, pod.metadata.namespace, {"metadata": {"annotations": notes}}
        )

    return play


def test_a_pod_that_reaches_the_store_is_told(ask, node, core, played, kustomized) -> None:
    with played(ends(core, 0, report())) as seen:
        code, line = ask()
    assert (code, line["state"]) == (0, "ok")
    assert f"file:///data/store from a pod on {node} (aarch64)" in line["text"]
    assert "PUT, GET, list, multipart, DELETE" in line["text"]
    assert living(core, kustomized) == []
    (pod,) = seen
    (main,) = pod.spec.containers
    assert (main.image, main.args) == ("registry.example/jobs:1", storepod.PROGRAM)
    assert pod.spec.service_account_name == "job"
    assert pod.spec.active_deadline_seconds == storepod.LIFE_SECONDS
    assert not [row for row in main.resources.requests if "/" in row]
    assert "app.kubernetes.io/name" in pod.metadata.labels  # by which the NetworkPolicy knows it
    assert [row for row in pod.spec.volumes if row.host_path]
    env = {row.name: row.value for row in main.env}
    assert env["JOB_STORE"] == "file:///data/store"
    assert "JOB_SPEC" not in env
    assert pod.spec.restart_policy == "Never"


def test_the_launchers_account_may_do_it(
    ask, node, core, played, kustomized, cluster, monkeypatch, tmp_path
) -> None:
    spec = {"spec": {"audiences": [], "expirationSeconds": 600}}
    answer = core.create_namespaced_service_account_token("launcher", kustomized, spec)
    path = cluster.kubeconfig_of(tmp_path / "launcher", answer.status.token)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with played(ends(core, 0, report())):
        code, line = ask()
    assert (code, line["state"]) == (0, "ok"), line
    assert living(core, kustomized) == []


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (78, report(PUT="s3://b/x: NoSuchBucket"), "PUT: s3://b/x: NoSuchBucket"),
        (69, report(GET="no answer"), "GET: no answer"),
        (1, "python: No module named jobs.doctor", "older than this launcher"),
        (137, "", "Error (exit 137)"),
        (0, "hello", "Completed (exit 0): hello"),
        (0, '{"checks": 1}', "Completed (exit 0)"),
    ],
)
def test_a_pod_that_fails_is_told(ask, node, core, played, kustomized, code, said, words) -> None:
    with played(ends(core, code, said)):
        ended, line = ask()
    assert (ended, line["state"]) == (78, "fail")
    assert words in line["text"]
    assert living(core, kustomized) == []


@pytest.fixture
def still_node(core, controllers, scheduler) -> Iterator[str]:
    """Return a node with NPUs that nobody plays: tests write the status of its pods."""
    name = "still"
    room = {"cpu": "192", "memory": "1500Gi", "ephemeral-storage": "3Ti", "pods": "9"}
    room["huawei.com/Ascend910"] = "8"
    ready = {"type": "Ready", "status": "True", "reason": "Test"}
    core.create_node(
        {
            "metadata": {"name": name, "labels": TYPE},
            "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
        }
    )
    wait_for(lambda: not core.read_node(name).spec.taints, f"{name} to be taken as ready")
    yield name
    core.delete_node(name)


def test_an_image_that_cannot_be_pulled_is_told(
    ask, still_node, core, cluster, played, kustomized
) -> None:
    from kubernetes import client

    def refuse(pod: Any) -> None:
        message = 'Back-off pulling image "x": failed to resolve reference: 401 Unauthorized'
        row = {
            "name": "main", "image": "registry.example/jobs:1", "imageID": "", "ready": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": message}},
        }  # fmt: skip
        client.CoreV1Api(cluster.kubelet(still_node)).patch_namespaced_pod_status(
            pod.metadata.name, kustomized, {"status": {"containerStatuses": [row]}}
        )

    with played(refuse):
        code, line = ask()
    assert (code, line["state"]) == (78, "fail")
    assert "registry.example/jobs:1" in line["text"]
    assert "image_pull_secret" in line["fix"]
    assert living(core, kustomized) == []


def test_a_mount_that_is_missing_is_told(ask, still_node, core, played, kustomized) -> None:
    def fail(pod: Any) -> None:
        core.create_namespaced_event(
            kustomized,
            {
                "metadata": {"generateName": "mount-"},
                "involvedObject": {
                    "kind": "Pod", "name": pod.metadata.name, "namespace": kustomized,
                    "uid": pod.metadata.uid,
                },
                "reason": "FailedMount", "type": "Warning",
                "message": 'MountVolume.SetUp failed for volume "dcmi" : hostPath type check'
                " failed: /usr/local/dcmi is not a directory",
            },
        )  # fmt: skip

    with played(fail):
        code, line = ask()
    assert (code, line["state"]) == (78, "fail")
    assert "/usr/local/dcmi" in line["text"]
    assert living(core, kustomized) == []


def test_a_pod_that_no_node_takes_is_told(ask, node, core, kustomized) -> None:
    # All others are told by lines of their own, which end doctor with their code.
    core.patch_node_status(node, {"status": {"allocatable": {"pods": "0"}}})
    code, line = ask()
    assert (code, line["state"]) == (78, "fail")
    assert "no node takes it: 0/" in line["text"]
    assert living(core, kustomized) == []


def test_a_quota_that_takes_no_pod_is_told(ask, node, core, kustomized) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    core.create_namespaced_resource_quota(kustomized, quota)
    try:
        wait_for(
            lambda: core.read_namespaced_resource_quota("none", kustomized).status.hard,
            "the quota to count",
        )
        code, line = ask()
    finally:
        core.delete_namespaced_resource_quota("none", kustomized)
    assert (code, line["state"]) == (77, "fail")
    assert "exceeded quota: none" in line["text"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_ended_takes_the_pod_away(ask, node, core, kustomized, number) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", "doctor", "--pod"],
        env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_for(
            lambda: [row for row in living(core, kustomized) if row.status.phase == "Running"],
            "the pod",
        )
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert living(core, kustomized) == []
