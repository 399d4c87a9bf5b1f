"""`logs` through a real API server, from a stand-in for the kubelet (stubkubelet.py)."""

from __future__ import annotations

import itertools
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for
from stubkubelet import Log, StubKubelet, stub_kubelet

from launcher import cli
from launcher.backends import podlogs
from launcher.backends.apiserver import ApiServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

BEGIN = "2026-01-01T00:00:00Z I jobs.runtime jobs=0.1.0 run=r kind=train spec=abc"


@dataclass
class Stage:
    """A namespace, a node that serves what the test prints, and Jobs whose pods it plays."""

    core: Any
    batch: Any
    namespace: str
    node: str
    stub: StubKubelet
    store: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def submit(self, run: str = "cat", nodes: int = 1, workers: int = 1) -> None:
        labels = {
            "app.kubernetes.io/managed-by": "launcher", "app.kubernetes.io/component": "train"
        }  # fmt: skip
        variables = {
            "JOB_STORE": self.store.as_uri(), "JOB_WORKERS": str(workers), "JOB_SPEC": "{}"
        }  # fmt: skip
        rules = [
            {"action": action, "onExitCodes": {"operator": "In", "values": [code]}}
            for action, code in (("Ignore", 75), ("FailJob", 70))
        ]
        env = [{"name": name, "value": value} for name, value in variables.items()]
        spec = {
            "completionMode": "Indexed", "completions": nodes, "parallelism": nodes,
            "backoffLimitPerIndex": 3, "maxFailedIndexes": 0, "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"restartPolicy": "Never",
                         "containers": [{"name": "main", "image": "none", "env": env}]},
            },
        }  # fmt: skip
        self.batch.create_namespaced_job(
            self.namespace,
            {"metadata": {"name": run, "labels": labels}, "spec": spec},
        )

    def start(self, index: int = 0, *, ago: int = 0) -> Pod:
        """Let the next pod of an index that waits run, as if since so many seconds."""

        def waiting() -> Any:
            rows = self.core.list_namespaced_pod(self.namespace).items
            return next((
                row for row in rows
                if not row.spec.node_name and not row.metadata.deletion_timestamp
                and row.metadata.labels["batch.kubernetes.io/job-completion-index"] == str(index)
            ), None)  # fmt: skip

        name = wait_for(waiting, f"a pod of index {index}").metadata.name
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        self.core.create_namespaced_binding(
            self.namespace, {"metadata": {"name": name}, "target": target}, _preload_content=False
        )
        pod = Pod(self, name, Log(self.store / "cat" / "logs" / f"node-{index}"), now(-ago))
        self.stub.logs[name] = pod.log
        pod.tell("Running", {"running": {"startedAt": pod.started}})
        return pod

    def fresh(self, count: int) -> list[str]:
        """Return lines that were never printed before."""
        return [f"[0] line {next(self.numbers)}" for _ in range(count)]

    def follow(self, folder: Path, *flags: str) -> Follower:
        return Follower(folder, self.namespace, *flags)


@dataclass
class Pod:
    stage: Stage
    name: str
    log: Log
    started: str

    def tell(self, phase: str, state: dict[str, Any]) -> None:
        """Patch the status as the kubelet does."""
        row = {"name": "main", "state": state, "ready": False, "restartCount": 0,
               "image": "none", "imageID": ""}  # fmt: skip
        status = {"phase": phase, "containerStatuses": [row]}
        self.stage.core.patch_namespaced_pod_status(
            self.name, self.stage.namespace, {"status": status}
        )

    def write(self, *lines: str) -> None:
        self.log.write(*lines)

    def end(self, code: int, message: str = "", *, recorded: bool = True) -> None:
        self.log.end()
        if code == 0 and recorded:
            (self.stage.store / "cat" / "result.json").write_text('{"kind": "train"}')
        ended = {"exitCode": code, "startedAt": self.started, "finishedAt": now(),
                 "message": message or f"{code} because"}  # fmt: skip
        self.tell("Failed" if code else "Succeeded", {"terminated": ended})


def now(seconds: int = 0) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Follower:
    """`launcher logs cat -f` in a process of its own."""

    def __init__(self, folder: Path, namespace: str, *flags: str) -> None:
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "launcher.cli", "logs", "cat", "-f", "--backend",
                 "kubernetes", "-n", namespace, *flags],
                stdout=out, stderr=err, cwd=folder,
            )  # fmt: skip

    def shown(self) -> list[str]:
        return self.out.read_text().splitlines()

    def until(self, line: str) -> None:
        def there() -> bool:
            assert self.child.poll() is None, self.err.read_text()
            return line in self.shown()

        wait_for(there, f"{line!r} after {self.shown()[-3:]} {self.err.read_text()}")

    def ended(self) -> tuple[int, str]:
        return self.child.wait(60), self.err.read_text()


@pytest.fixture
def stage(cluster: Any, controllers: None, namespace: str, tmp_path: Path) -> Iterator[Stage]:
    from kubernetes import client

    core, batch = client.CoreV1Api(cluster.api()), client.BatchV1Api(cluster.api())
    node = f"stub-{secrets.token_hex(4)}"
    with stub_kubelet(tmp_path) as stub:
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": stub.port}},
        }
        core.create_node({"metadata": {"name": node}, "status": status})
        yield Stage(core, batch, namespace, node, stub, tmp_path / "store")
        core.delete_node(node)
        for pod in core.list_namespaced_pod(namespace).items:
            # Nobody else confirms the end of a pod whose node is none.
            core.delete_namespaced_pod(pod.metadata.name, namespace, grace_period_seconds=0)


@pytest.fixture
def following(stage: Stage, tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def follow(*flags: str) -> Follower:
        made.append(stage.follow(tmp_path, *flags))
        return made[-1]

    yield follow
    for row in made:
        row.child.kill()
        row.child.wait()


def logs(stage: Stage, capfd: Any, *flags: str) -> tuple[int, list[str], str]:
    """Run the verb in this process."""
    code = cli.main(["logs", "cat", "--backend", "kubernetes", "-n", stage.namespace, *flags])
    out, err = capfd.readouterr()
    return code, out.splitlines(), err


def test_a_follower_gets_each_line_once_whatever_happens(
    stage: Stage, following: Callable[..., Follower], api_server: Any
) -> None:
    stage.submit()
    told: list[str] = []
    follower = following()
    wait_for(lambda: "cat: " in follower.err.read_text(), "the reason why nothing runs")
    pod = stage.start()

    def prints(*lines: str) -> None:
        pod.write(*lines)
        told.extend(lines)

    prints(BEGIN, *stage.fresh(5))
    follower.until(told[-1])
    for _ in range(3):  # a balancer drops the connection
        stage.stub.cut()
        prints(*stage.fresh(5))
    follower.until(told[-1])
    pod.log.rotate()  # in the middle of a stream that goes on
    prints(*stage.fresh(5))
    follower.until(told[-1])
    with api_server.down():  # what is rotated away meanwhile is in the copy alone
        prints(*stage.fresh(20))
        pod.log.rotate()
        prints(*stage.fresh(20))
        pod.log.rotate()
        prints(*stage.fresh(2))
    follower.until(told[-1])
    prints("2026-01-01T00:00:00Z E jobs.runtime exit=75 stopped: on request")
    pod.end(75, "75 stopped: step 3 is committed")
    stage.core.delete_namespaced_pod(pod.name, stage.namespace, grace_period_seconds=0)
    pod = stage.start()
    prints(BEGIN, *stage.fresh(5), "2026-01-01T00:00:00Z I jobs.runtime exit=0 all is there")
    pod.end(0)
    code, words = follower.ended()
    assert follower.shown() == told
    assert code == 0, words
    assert words.count("going on when it answers") <= 1
    assert "missing" not in words


def test_a_run_that_fails_ends_70_with_its_reason(
    stage: Stage, following: Callable[..., Follower]
) -> None:
    stage.submit()
    pod = stage.start()
    pod.write(BEGIN, "[0] loss=nan")
    pod.end(70, "70 diverged: loss is nan at step 3")
    follower = following()
    code, words = follower.ended()
    assert (code, follower.shown()) == (70, [BEGIN, "[0] loss=nan"])
    assert "error: run 'cat': " in words
    assert "loss is nan at step 3" in words


def test_a_run_whose_store_has_no_record_of_its_success_failed(
    stage: Stage, following: Callable[..., Follower]
) -> None:
    stage.submit()
    pod = stage.start()
    pod.write(BEGIN)
    pod.end(0, recorded=False)
    code, words = following().ended()
    assert code == 70
    assert "the store has no record that the run succeeded" in words


def test_a_run_that_waits_says_why_instead_of_nothing(stage: Stage, capfd: Any) -> None:
    stage.submit()
    wait_for(
        lambda: stage.core.list_namespaced_pod(stage.namespace).items, "the pod that has no node"
    )
    code, lines, words = logs(stage, capfd)
    assert (code, lines) == (0, [])
    assert "cat: pending: " in words


def test_several_nodes_are_told_apart_and_a_rank_is_on_one(stage: Stage, capfd: Any) -> None:
    stage.submit(nodes=2, workers=2)
    first, second = stage.start(0), stage.start(1)
    first.write(BEGIN, "[0] a", "[1] b")
    second.write(BEGIN, "[2] c", "[3] loss=1")
    first.write("[0] d", "[1] loss=2")
    code, lines, _ = logs(stage, capfd)
    assert code == 0
    assert lines == [
        f"node-0 | {BEGIN}", "node-0 | [0] a", "node-0 | [1] b", f"node-1 | {BEGIN}",
        "node-1 | [2] c", "node-1 | [3] loss=1", "node-0 | [0] d", "node-0 | [1] loss=2",
    ]  # fmt: skip
    assert logs(stage, capfd, "--rank", "3")[1] == ["[3] loss=1"]
    assert logs(stage, capfd, "--grep", r"loss=\d")[1] == lines[5::2]
    assert logs(stage, capfd, "--tail", "1")[1] == ["node-1 | [3] loss=1", "node-0 | [1] loss=2"]
    assert logs(stage, capfd, "--since", "1h")[1] == lines
    code, _, words = logs(stage, capfd, "--rank", "4")
    assert code == 2
    assert words.splitlines() == [
        "error: --rank 4: the run has no such worker", "hint: --rank 0 to 3"
    ]  # fmt: skip


def test_following_begins_with_the_last_lines(
    stage: Stage, following: Callable[..., Follower]
) -> None:
    stage.submit()
    pod = stage.start()
    pod.write(BEGIN, *stage.fresh(20))
    follower = following("--tail", "2")
    follower.until("[0] line 19")
    pod.write(*stage.fresh(2))
    pod.end(0)
    assert follower.ended()[0] == 0
    assert follower.shown() == [f"[0] line {number}" for number in range(18, 22)]


def test_attempts_whose_pods_and_files_are_gone_come_from_the_store(
    stage: Stage, capfd: Any
) -> None:
    stage.submit()
    told = [BEGIN, *stage.fresh(3)]
    pod = stage.start()
    pod.write(*told)
    pod.end(75)
    wait_for(lambda: len(stage.core.list_namespaced_pod(stage.namespace).items) > 1, "the next")
    stage.core.delete_namespaced_pod(pod.name, stage.namespace, grace_period_seconds=0)
    pod = stage.start(ago=5)  # long enough for its node to have rotated
    for _ in range(3):
        told += (more := [BEGIN, *stage.fresh(4)])
        pod.write(*more)
        pod.log.rotate()
    told += (more := stage.fresh(6))
    pod.write(*more)
    assert logs(stage, capfd)[:2] == (0, told)
    stage.batch.delete_namespaced_job("cat", stage.namespace, propagation_policy="Background")
    code, lines, words = logs(stage, capfd, "--store", str(stage.store), "--tail", "8")
    assert (code, lines) == (0, told[-8:])
    assert "this is what the store has" in words
    code, _, words = logs(stage, capfd, "-f", "--store", str(stage.store))
    assert code == 70
    assert "its Job was deleted before it succeeded" in words


def test_how_a_run_ended_whose_job_is_gone(stage: Stage, capfd: Any) -> None:
    place = stage.store / "cat"
    (place / "logs" / "attempt-1").mkdir(parents=True)
    (place / "claim.json").write_text(json.dumps({"epoch": 1}))
    row = {"attempt": 1, "code": 0, "name": "succeeded", "reason": "all is there"}
    (place / "end.json").write_text(json.dumps(row))
    (place / "logs" / "attempt-1" / "worker_0.log").write_text(f"{now()} I a\n")
    (place / "logs" / "attempt-1" / "worker_1.log").write_text(f"{now()} I b\n")
    code, lines, _ = logs(stage, capfd, "-f", "--store", str(stage.store))
    assert code == 0
    assert sorted(line[:4] for line in lines) == ["[0] ", "[1] "]


def test_what_was_never_there_is_66_and_what_is_not_ours_78(stage: Stage, capfd: Any) -> None:
    code, lines, words = logs(stage, capfd, "--store", str(stage.store))
    assert (code, lines) == (66, [])
    assert words.startswith("error: run 'cat': no such job")
    container = {"name": "main", "image": "none"}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    stage.batch.create_namespaced_job(stage.namespace, {"metadata": {"name": "cat"}, "spec": spec})
    assert logs(stage, capfd)[0] == 78


def test_who_may_not_read_logs_is_told_the_rule(
    stage: Stage, cluster: Any, capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes import client

    stage.submit()
    stage.start().write(BEGIN)
    role = {
        "metadata": {"name": "half"},
        "rules": [
            {"apiGroups": ["", "batch"], "resources": ["jobs", "pods"],
             "verbs": ["get", "list", "watch"]},
        ],
    }  # fmt: skip
    rights = client.RbacAuthorizationV1Api(cluster.api())
    rights.create_namespaced_role(stage.namespace, role)
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": stage.namespace}
    rights.create_namespaced_role_binding(
        stage.namespace,
        {"metadata": {"name": "half"}, "subjects": [subject],
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "half"}},
    )  # fmt: skip
    token = stage.core.create_namespaced_service_account_token(
        "default", stage.namespace, {"spec": {}}
    ).status.token
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "half", token)))
    for flags in ((), ("-f",)):
        code, lines, words = logs(stage, capfd, *flags)
        assert (code, lines) == (77, [])
        assert "pods/log" in words
        assert "error: " in words.splitlines()[-2]


def test_a_stream_that_dies_silently_is_noticed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.submit()
    pod = stage.start()
    pod.write(BEGIN, "[0] a")
    monkeypatch.setattr(podlogs, "IDLE_SECONDS", 0.5)
    found = stage.core.read_namespaced_pod(pod.name, stage.namespace)
    row = stage.core.api_client.sanitize_for_serialization(found)
    lines: list[str] = []

    def read() -> None:
        for batch in podlogs.PodLog(ApiServer(namespace=stage.namespace), row).follow(None):
            lines.extend(line.text.decode() for line in batch)

    with pytest.raises(podlogs.Idle):
        read()
    assert lines == [BEGIN, "[0] a"]


def test_a_node_that_does_not_answer_is_told_and_does_not_hang(stage: Stage, capfd: Any) -> None:
    stage.submit()
    pod = stage.start()
    pod.write(BEGIN)
    stage.stub.server.shutdown()
    stage.stub.server.server_close()
    code, lines, words = logs(stage, capfd)
    assert (code, lines) == (69, [])
    assert words.startswith(f"error: pod {pod.name}: ")
