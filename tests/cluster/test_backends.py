"""One suite for both backends: the same verbs lead to the same states and exit codes.

Local runs are real processes (a stand-in for the supervisor); those of the cluster are real Jobs,
with pods that KWOK plays, submitted and asked for by the account `launcher` with its own rights.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from conftest import K8S, wait_for
from standin import PROGRAM

from jobs.errors import BY_CODE, FINAL
from launcher import cli, podreader
from launcher.backends import local, localrun

pytestmark = pytest.mark.cluster

GOOD = "0 results are committed and verified"
COMMON = {
    "run", "kind", "state", "code", "code_name", "reason", "submitted", "workers", "records",
    "step", "steps", "loss", "images_per_second", "seconds_left", "committed",
}  # fmt: skip
"""What `status --json` has in both."""


class Backend:
    """The command line on one backend, and a hand on how its runs end."""

    def __init__(self, flags: tuple[str, ...], target: tuple[str, ...], capsys: Any) -> None:
        self.flags, self.target, self.capsys = flags, target, capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        self.capsys.readouterr()
        code = cli.main([*words, *self.flags])
        out, err = self.capsys.readouterr()
        return code, out, err

    def submit(self, name: str, *more: str) -> tuple[int, str, str]:
        return self("submit", "train", "--name", name, "--steps", "2", *self.target, *more)

    def status(self, name: str) -> dict[str, Any]:
        code, out, err = self("status", name, "--json")
        assert code == 0, err
        return dict(json.loads(out))

    def until(self, name: str, *states: str) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def there() -> bool:
            seen.update(self.status(name))
            return seen["state"] in states

        wait_for(there, f"{name} to be {' or '.join(states)}")
        return seen

    def end(self, name: str, ending: str) -> None:
        """Let a run that goes on end with `<code> <reason>`."""
        raise NotImplementedError


class Local(Backend):
    hold: Any

    def submit(self, name: str, *more: str) -> tuple[int, str, str]:
        self.monkeypatch.setenv("STANDIN_HOLD", str(self.hold / name))
        return super().submit(name, *more)

    def until(self, name: str, *states: str) -> dict[str, Any]:
        told = super().until(name, *states)
        if "running" in states:  # and heeds SIGTERM, which Python does not at its very start
            wait_for(lambda: self.status(name)["committed"], f"{name} to commit")
        return told

    def end(self, name: str, ending: str) -> None:
        path = self.hold / f"{name}.part"
        path.write_text(ending)
        path.rename(self.hold / name)


class Cluster(Backend):
    def end(self, name: str, ending: str) -> None:
        self.annotate(name, ending)


@pytest.fixture(params=["local", "kubernetes"])
def backend(request, tmp_path, monkeypatch, capsys) -> Iterator[Backend]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    if request.param == "local":
        monkeypatch.setattr(local, "PROGRAM", PROGRAM)
        made = Local(("--backend", "local"), (), capsys)
        made.hold, made.monkeypatch = tmp_path / "hold", monkeypatch
        made.hold.mkdir()
        yield made
        for files in localrun.everyone(tmp_path / "runs"):
            local.cancel(files, now=True)
        return
    # No node of KWOK serves a log, which a run's follower only believes after some tries.
    monkeypatch.setattr(podreader, "LAST_WAIT", 0.1)
    for name in ("controllers", "scheduler", "kwok"):
        request.getfixturevalue(name)
    cluster, namespace = (request.getfixturevalue(name) for name in ("cluster", "namespace"))
    token = account(cluster, request.getfixturevalue("kubectl"), namespace)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "kubeconfig", token)))
    resource = f"test.example/{namespace}"  # so that the node is this test's alone
    monkeypatch.setenv("LAUNCHER_RESOURCE", resource)
    request.getfixturevalue("new_node")(resource=resource, **{"accelerator-type": "module-910b-8"})
    target = ("--image", "registry.example/jobs:1", "--store", f"file://{tmp_path}/away")
    made = Cluster(("--backend", "kubernetes", "-n", namespace), target, capsys)
    made.annotate = annotating(cluster, namespace)
    yield made


def account(cluster: Any, kubectl: Any, namespace: str) -> str:
    """Make the account `launcher` of k8s/base, with its rights and no others; return its token."""
    from kubernetes import client

    rows = list(yaml.safe_load_all((K8S / "base" / "rbac.yaml").read_text()))
    for row in rows:
        for subject in row.get("subjects", ()):
            subject["namespace"] = namespace
    kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump_all(rows))
    made = client.CoreV1Api(cluster.api()).create_namespaced_service_account_token(
        "launcher", namespace, {"spec": {"audiences": [], "expirationSeconds": 600}}
    )
    access = client.AuthorizationV1Api(cluster.api())
    asked = {"verb": "delete", "resource": "pods", "namespace": namespace}
    user = f"system:serviceaccount:{namespace}:launcher"
    review = {"spec": {"user": user, "resourceAttributes": asked}}
    wait_for(
        lambda: access.create_subject_access_review(review).status.allowed, "the account's rights"
    )
    return str(made.status.token)


def annotating(cluster: Any, namespace: str) -> Callable[[str, str], None]:
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())

    def end(run: str, ending: str) -> None:
        code = ending.split()[0]
        body = {"metadata": {"annotations": {"play/exit": code, "play/said": ending}}}
        label = f"batch.kubernetes.io/job-name={run}"
        for pod in core.list_namespaced_pod(namespace, label_selector=label).items:
            core.patch_namespaced_pod(pod.metadata.name, namespace, body)

    return end


def test_a_run_is_submitted_listed_and_succeeds(backend) -> None:
    code, out, err = backend.submit("cat-1")
    assert (code, out) == (0, "cat-1\n"), err
    told = backend.until("cat-1", "running")
    assert told.keys() >= COMMON
    assert (told["run"], told["kind"], told["workers"], told["code"]) == ("cat-1", "train", 1, None)
    code, out, _ = backend("list", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["run"], row["kind"], row["state"]) == ("cat-1", "train", "running")
    assert row["submitted"] == told["submitted"]
    assert backend("list")[1].splitlines()[0].split()[:3] == ["RUN", "KIND", "STATE"]
    backend.end("cat-1", GOOD)
    told = backend.until("cat-1", "succeeded")
    assert (told["code"], told["code_name"]) == (0, "succeeded")
    assert "results are committed and verified" in told["reason"]
    code, out, err = backend("status", "cat-1")
    assert (code, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert rows["run"] == "cat-1"
    assert rows["state"].startswith("succeeded")


@pytest.mark.parametrize("code", FINAL)
def test_a_run_that_failed_for_good_says_so(backend, code) -> None:
    backend.submit("cat-1")
    backend.until("cat-1", "running")
    backend.end("cat-1", f"{code} {BY_CODE[code].name}: the reason of it")
    told = backend.until("cat-1", "failed")
    assert (told["code"], told["code_name"]) == (code, BY_CODE[code].name)
    assert "the reason of it" in told["reason"]
    assert backend("status", "cat-1")[0] == 0, "status tells; it does not fail"


@pytest.mark.parametrize(("ending", "code"), [(GOOD, 0), ("70 diverged: not finite", 70)])
@pytest.mark.parametrize("verb", ["--watch", "--wait"])
def test_who_waits_ends_as_the_run_does(backend, verb, ending, code) -> None:
    def later() -> None:
        # Another thread may not use this one's command line, nor its output.
        gone_on.wait(60)
        backend.end("cat-1", ending)

    gone_on = threading.Event()
    thread = threading.Thread(target=later)
    thread.start()
    if verb == "--watch":
        backend.submit("cat-1")
        backend.until("cat-1", "running")
        gone_on.set()
        found, _, err = backend("status", "cat-1", "--watch")
    else:
        timer = threading.Timer(2.5, gone_on.set)
        timer.start()
        found, out, err = backend.submit("cat-1", "--wait")
        timer.join()
        assert out == "cat-1\n"
    thread.join()
    assert found == code, err
    assert ("not finite" in err) == (code != 0)


def test_cancel_lets_it_stop_and_the_same_submission_goes_on(backend) -> None:
    backend.submit("cat-1")
    backend.until("cat-1", "running")
    code, out, err = backend("cancel", "cat-1")
    assert (code, out) == (0, "")
    assert "stopping; it commits what it has first" in err
    assert "75" in err
    assert "running" not in backend("list", "--json")[1]
    code, out, _ = backend.submit("cat-1")
    assert (code, out) == (0, "cat-1\n")
    backend.until("cat-1", "running")
    code, _, err = backend("cancel", "cat-1", "--now")
    assert code == 0
    assert "killing it" in err


def test_a_name_is_used_once_and_idempotent_takes_the_same(backend) -> None:
    backend.submit("cat-1")
    backend.until("cat-1", "running")
    code, out, err = backend.submit("cat-1")
    assert (code, out) == (73, ""), err
    code, out, err = backend.submit("cat-1", "--idempotent")
    assert (code, out) == (0, "cat-1\n"), err
    assert "there is already, with the same spec" in err
    code, out, err = backend.submit("cat-1", "--idempotent", "--set", "seed=5")
    assert (code, out) == (73, ""), err
    backend.end("cat-1", GOOD)
    backend.until("cat-1", "succeeded")
    assert backend.submit("cat-1")[0] == 73
    code, out, err = backend.submit("cat-1", "--idempotent", "--wait")
    assert (code, out) == (0, "cat-1\n"), err


@pytest.mark.parametrize("verb", [("status",), ("status", "--watch"), ("cancel",), ("logs",)])
def test_a_run_that_is_not_there(backend, verb) -> None:
    code, out, err = backend(verb[0], "nobody", *verb[1:])
    assert (code, out) == (66, ""), err
    assert "error: run 'nobody': no such " in err
    assert "hint: " in err
    code, _, err = backend(verb[0], "No Good", *verb[1:])
    assert code == 66
    assert "that is no legal name" in err


def test_no_runs(backend) -> None:
    code, out, err = backend("list")
    assert (code, out) == (0, "")
    assert "no runs in " in err
    code, out, _ = backend("list", "--json")
    assert (code, json.loads(out)) == (0, [])
