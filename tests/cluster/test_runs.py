"""Runs on a cluster by the launcher's own verbs: list, status, cancel, --wait, --idempotent.

Real API server, controllers and scheduler; the pods are played by KWOK, as stages.yaml says.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from conftest import wait_for

from launcher import cli, podreader
from launcher.backends.kubernetes import Kubernetes
from launcher.errors import NotFound

pytestmark = pytest.mark.cluster

LABELS = {"accelerator-type": "module-910b-8"}
SUBMIT = ("submit", "train", "--image", "registry.example/jobs:1", "--store", "s3://bucket/runs")


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch, namespace, controllers, scheduler, kwok) -> None:
    """Keep the launcher from finding a launcher.toml, local runs or the store of this machine."""
    monkeypatch.setenv("LAUNCHER_RESOURCE", f"test.example/{namespace}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # No node of KWOK serves a log, which a run's follower only believes after some tries.
    monkeypatch.setattr(podreader, "LAST_WAIT", 0.1)


class Launcher:
    """The command line in this process, on one namespace."""

    def __init__(self, namespace: str, capsys: Any) -> None:
        self.namespace, self.capsys = namespace, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = cli.main([*words, "-n", self.namespace])
        out, err = self.capsys.readouterr()
        return code, out, err

    def submit(self, name: str, *more: str) -> None:
        code, out, err = self(*SUBMIT, "--name", name, *more)
        assert (code, out) == (0, f"{name}\n"), err

    def status(self, name: str) -> dict[str, Any]:
        code, out, err = self("status", name, "--json")
        assert code == 0, err
        return dict(json.loads(out))


@pytest.fixture
def launcher(namespace: str, capsys) -> Launcher:
    return Launcher(namespace, capsys)


@pytest.fixture
def annotate(cluster, namespace) -> Callable[..., None]:
    """Return a function that annotates the pods of a run, by which stages.yaml moves them."""
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())

    def write(run: str, **values: str) -> None:
        notes = {f"play/{key.replace('_', '-')}": value for key, value in values.items()}
        pods = wait_for(lambda: pods_of(core, namespace, run), f"the pods of {run}")
        for pod in pods:
            body = {"metadata": {"annotations": notes}}
            core.patch_namespaced_pod(pod.metadata.name, namespace, body)

    return write


@pytest.fixture
def node(new_node, namespace) -> Callable[[], str]:
    """Return a function that makes a node which this test alone has pods for."""
    return lambda: new_node(resource=f"test.example/{namespace}", **LABELS)


def pods_of(core: Any, namespace: str, run: str) -> list[Any]:
    label = f"batch.kubernetes.io/job-name={run}"
    return list(core.list_namespaced_pod(namespace, label_selector=label).items)


def until(launcher: Launcher, run: str, state: str) -> dict[str, Any]:
    """Return the status of a run once it is in that state."""
    seen: dict[str, Any] = {}

    def there() -> bool:
        seen.update(launcher.status(run))
        return bool(seen["state"] == state)

    wait_for(there, f"{run} to be {state}")
    return seen


def test_a_run_from_pending_to_its_end(launcher, node, annotate) -> None:
    launcher.submit("cat-1")
    told = until(launcher, "cat-1", "pending")
    assert (told["kind"], told["namespace"]) == ("train", launcher.namespace)
    assert told["reason"]
    (row,) = json.loads(launcher("list", "--json")[1])
    assert (row["run"], row["kind"], row["state"]) == ("cat-1", "train", "pending")
    node()
    told = until(launcher, "cat-1", "running")
    assert told["workers"] == 1
    assert {phase["name"] for phase in told["phases"]} & {"compiling", "running"}
    (row,) = json.loads(launcher("list", "--json")[1])
    assert (row["state"], row["ended"], row["why"]) == ("running", "0/1", "")
    assert row["submitted"] == told["submitted"]
    annotate("cat-1", exit="0", said="0 succeeded: results are committed and verified")
    told = until(launcher, "cat-1", "succeeded")
    assert (told["code"], told["code_name"]) == (0, "succeeded")
    _, out, _ = launcher("list")
    head, row = out.splitlines()
    assert head.split() == ["RUN", "KIND", "STATE", "ENDED", "DURATION", "SUBMITTED"]
    assert row.split()[:4] == ["cat-1", "train", "succeeded", "1/1"]


def test_a_run_that_fails_tells_code_reason_and_next_step(launcher, node, annotate) -> None:
    node()
    launcher.submit("cat-1")
    until(launcher, "cat-1", "running")
    annotate("cat-1", exit="70", said="70 diverged: the loss is not finite at step 12")
    told = until(launcher, "cat-1", "failed")
    assert (told["code"], told["code_name"]) == (70, "diverged")
    assert "the loss is not finite at step 12" in told["reason"]
    assert told["next_step"]
    code, out, err = launcher("status", "cat-1")
    assert (code, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert rows["state"] == f"failed: {told['reason']}"
    assert rows["next"] == told["next_step"]
    assert rows["records"] == "s3://bucket/runs/cat-1"
    (row,) = json.loads(launcher("list", "--json")[1])
    assert row["state"] == "failed"


def test_what_a_store_away_leaves_unknown_is_said(launcher, node) -> None:
    node()
    launcher.submit("cat-1")
    until(launcher, "cat-1", "running")
    told = launcher.status("cat-1")
    assert told["step"] is None
    assert told["unread"].startswith("not known: ")


def test_progress_comes_from_a_store_that_can_be_read(launcher, node, tmp_path) -> None:
    store = tmp_path / "store"
    node()
    launcher.submit("cat-1", "--store", f"file://{store}", "--steps", "50")
    until(launcher, "cat-1", "running")
    assert "is not mounted here" in launcher.status("cat-1")["unread"]
    (store / "cat-1").mkdir(parents=True)
    row = {"step": 20, "loss": 0.5, "img_s": 3.0, "ms_per_step": 1000.0}
    (store / "cat-1" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    told = launcher.status("cat-1")
    assert (told["step"], told["steps"], told["seconds_left"]) == (20, 50, 30.0)
    assert told["unread"] == ""
    assert "step 20 of 50, loss 0.5, 3 img/s, about 30s left" in launcher("status", "cat-1")[1]


# --- waiting


def test_wait_tells_why_it_waits_and_ends_as_the_run_does(launcher, node, annotate) -> None:
    def go_on() -> None:
        annotate("cat-1", said="65 bad data: so it is")
        node()
        annotate("cat-1", exit="65")

    later = threading.Thread(target=go_on)
    later.start()
    code, out, err = launcher(*SUBMIT, "--name", "cat-1", "--wait")
    later.join()
    assert (code, out) == (70, "cat-1\n"), err
    assert "cat-1: pending: " in err
    (line,) = (row for row in err.splitlines() if row.startswith("error: "))
    assert line.startswith("error: run 'cat-1': ")
    assert "so it is" in line


def test_a_watched_status_is_told_at_each_change_and_ends_as_the_run_does(
    launcher, node, annotate
) -> None:
    launcher.submit("cat-1")

    def go_on() -> None:
        node()
        for number in range(3):  # which wakes the watch, and changes nothing that is shown
            annotate("cat-1", note=str(number))
            time.sleep(0.6)
        annotate("cat-1", exit="78", said="78 bad spec: steps: is negative")

    later = threading.Thread(target=go_on)
    later.start()
    code, out, err = launcher("status", "cat-1", "--watch", "--json")
    later.join()
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 70
    assert (told[0]["state"], told[-1]["state"]) == ("pending", "failed")
    shown = [(row["state"], row["word"], re.sub(r"\d+", "", row["reason"])) for row in told]
    assert all(one != other for one, other in pairwise(shown))
    assert "steps: is negative" in err


def test_a_watch_of_a_run_that_is_deleted_ends(launcher, kubectl) -> None:
    launcher.submit("cat-1")
    until(launcher, "cat-1", "pending")
    later = threading.Timer(
        1, lambda: kubectl("delete", "job", "cat-1", "-n", launcher.namespace, "--wait=false")
    )
    later.start()
    code, _, err = launcher("status", "cat-1", "--watch")
    later.join()
    assert code == 66
    assert "run 'cat-1': no such job in namespace" in err


# --- cancel


def test_cancel_waits_and_tells_what_the_job_said(launcher, node, annotate, kubectl) -> None:
    node()
    launcher.submit("cat-1")
    until(launcher, "cat-1", "running")
    annotate("cat-1", said="75 stopped: stopped on request; step 120 is committed")
    code, out, err = launcher("cancel", "cat-1")
    assert (code, out) == (0, "")
    assert "cat-1: stopping; it commits what it has first, within 1m 00s" in err
    assert "step 120 is committed" in err
    assert err.splitlines()[-1].startswith("cat-1: is gone; its name is free")
    assert kubectl("get", "jobs,pods", "-n", launcher.namespace) == ""
    assert launcher("status", "cat-1")[0] == 66
    launcher.submit("cat-1")  # the same submission goes on from its last commit


def test_cancel_now_says_what_is_lost(launcher, node, cluster) -> None:
    from kubernetes import client

    node()
    launcher.submit("cat-1")
    until(launcher, "cat-1", "running")
    core = client.CoreV1Api(cluster.api())
    (pod,) = pods_of(core, launcher.namespace, "cat-1")
    graces = []
    watching = threading.Thread(
        target=lambda: graces.extend(graces_of(core, launcher.namespace, pod.metadata.name))
    )
    watching.start()
    code, _, err = launcher("cancel", "cat-1", "--now")
    watching.join()
    assert code == 0
    assert "cat-1: killing it; all since its last commit is lost" in err
    assert 1 in graces, "not only the 60 s that the pod asks for"


def graces_of(core: Any, namespace: str, pod: str) -> list[int]:
    """Return the grace periods that a pod has in turn, until it is gone."""
    from kubernetes import watch

    found = []
    events = watch.Watch().stream(
        core.list_namespaced_pod, namespace, field_selector=f"metadata.name={pod}",
        timeout_seconds=30,
    )  # fmt: skip
    for event in events:
        grace = event["object"].metadata.deletion_grace_period_seconds
        if grace is not None:
            found.append(grace)
        if event["type"] == "DELETED":
            break
    return found


def test_cancel_of_what_never_began_and_of_what_has_ended(launcher, node, annotate) -> None:
    launcher.submit("waits")
    until(launcher, "waits", "pending")
    code, _, err = launcher("cancel", "waits")
    assert code == 0
    assert "waits: has not begun, so that there is nothing to save" in err
    node()
    launcher.submit("ends")
    annotate("ends", exit="0")
    until(launcher, "ends", "succeeded")
    code, _, err = launcher("cancel", "ends")
    assert code == 0
    assert "ends: has ended: succeeded" in err
    assert launcher("list")[2] == (
        f"no runs in namespace {launcher.namespace} of {server_of(launcher)}\n"
    )


def server_of(launcher: Launcher) -> str:
    from launcher.backends.apiserver import ApiServer

    return ApiServer(namespace=launcher.namespace).host


def test_cancel_leaves_a_job_of_the_same_name_alone(launcher, kubectl) -> None:
    backend = Kubernetes(namespace=launcher.namespace)
    launcher.submit("cat-1")
    old = backend.find("cat-1")
    kubectl("delete", "job", "cat-1", "-n", launcher.namespace, "--cascade=background")
    launcher.submit("cat-1")
    with pytest.raises(NotFound, match="is gone already"):
        backend.cancel(old)
    assert backend.find("cat-1")["metadata"]["uid"] != old["metadata"]["uid"]


def test_cancel_leaves_the_pods_of_another_job_alone(launcher, node, kubectl, cluster) -> None:
    from kubernetes import client

    node()
    launcher.submit("cat-1")
    until(launcher, "cat-1", "running")
    core = client.CoreV1Api(cluster.api())
    labels = {"batch.kubernetes.io/job-name": "cat-1"}
    spec = {"containers": [{"name": "main", "image": "none"}]}
    core.create_namespaced_pod(
        launcher.namespace, {"metadata": {"name": "stranger", "labels": labels}, "spec": spec}
    )
    assert launcher("cancel", "cat-1", "--now")[0] == 0
    (left,) = pods_of(core, launcher.namespace, "cat-1")
    assert (left.metadata.name, left.metadata.deletion_timestamp) == ("stranger", None)


# --- a name is used once


def test_idempotent_takes_the_run_of_the_same_spec_alone(launcher) -> None:
    launcher.submit("cat-1", "--steps", "50")
    code, out, err = launcher(*SUBMIT, "--name", "cat-1", "--steps", "50")
    assert (code, out) == (73, "")
    assert "run 'cat-1': exists" in err
    code, out, err = launcher(*SUBMIT, "--name", "cat-1", "--steps", "50", "--idempotent")
    assert (code, out) == (0, "cat-1\n")
    assert "there is already, with the same spec" in err
    code, out, err = launcher(*SUBMIT, "--name", "cat-1", "--steps", "51", "--idempotent")
    assert (code, out) == (73, "")
    assert "exists with another spec" in err
    for flag, value, what in (
        ("--image", "registry.example/other:2", "image"),
        ("--store", "s3://other/runs", "store"),
        ("--max-duration", "1h", "--max-duration"),
    ):
        given = (*SUBMIT, "--name", "cat-1", "--steps", "50", "--idempotent", flag, value)
        code, out, err = launcher(*given)
        assert (code, out) == (73, "")
        assert f"exists with the same spec and another {what}" in err
    (row,) = json.loads(launcher("list", "--json")[1])
    assert row["run"] == "cat-1"


def test_a_run_that_is_being_cancelled_is_not_taken(launcher, node, annotate, kubectl) -> None:
    node()
    launcher.submit("cat-1")
    until(launcher, "cat-1", "running")
    annotate("cat-1", stays="true")
    kubectl("delete", "job", "cat-1", "-n", launcher.namespace, "--cascade=foreground",
            "--wait=false")  # fmt: skip
    code, _, err = launcher(*SUBMIT, "--name", "cat-1", "--idempotent")
    assert code == 73
    assert "is being cancelled" in err
    (row,) = json.loads(launcher("list", "--json")[1])
    assert row["state"] == "stopping"
