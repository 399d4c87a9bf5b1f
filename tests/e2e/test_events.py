"""What happens to pods on real nodes: for each event the run goes on, or ends, as the design says.

A run that goes on must end with the very bits of a run that nobody disturbed. `pytest -rP` shows
what `status` said meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from running import ONE, TWO, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.mark.parametrize("index", [0, 1])
def test_deleted_pod_commits_and_is_replaced(start: Any, calm: Any, nodes: Any, index: int) -> None:
    run = start()
    run.train_on()
    before = [run.uid(0), run.uid(1)]
    pod = nodes.pods(run.name)[index]["metadata"]["name"]
    nodes.kubectl("delete", "pod", pod)
    run.end()
    after = [run.uid(0), run.uid(1)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [i != index for i in range(2)]
    run.resumed(stopped=True)
    assert run.state() == calm[TWO]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "program", ["jobs.worker", "mindspore.parallel.cluster.run", "jobs.runtime"]
)
def test_killed_process_costs_its_pod_alone(
    start: Any, calm: Any, program: str, index: int
) -> None:
    run = start()
    run.train_on()
    mine, other = run.uid(index), run.uid(1 - index)
    run.kill(program, index)
    run.end()
    assert run.uid(index) != mine
    assert run.uid(1 - index) == other
    run.resumed()
    assert run.state() == calm[TWO]


def test_drained_pod_goes_on_elsewhere(start: Any, calm: Any, nodes: Any) -> None:
    run = start(*ONE)
    run.train_on()
    [pod] = nodes.pods(run.name)
    node = pod["spec"]["nodeName"]
    try:
        nodes.kubectl("drain", node, "--force", "--delete-emptydir-data", "--timeout=120s")
        run.end()
        [again] = nodes.pods(run.name)
        assert again["spec"]["nodeName"] != node
        run.resumed(stopped=True)
    finally:
        nodes.kubectl("uncordon", node)
    assert run.state() == calm[ONE]


def test_restart_of_a_nodes_services_disturbs_nothing(start: Any, calm: Any, nodes: Any) -> None:
    run = start(*ONE)
    run.train_on()
    uid = run.uid(0)
    for service in ("kubelet-0", "containerd-0", "kubelet-1", "containerd-1"):
        nodes.stop_service(service)
    time.sleep(10)
    for service in ("containerd-0", "containerd-1", "kubelet-0", "kubelet-1"):
        nodes.start_service(service)
    run.end()
    assert run.uid(0) == uid
    assert run.state() == calm[ONE]


def test_store_that_is_away_for_two_minutes_costs_nothing(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start()
    run.train_on()
    uids = [run.uid(0), run.uid(1)]
    nodes.s3.stop()
    time.sleep(120)
    nodes.s3.start()
    run.end()
    assert [run.uid(0), run.uid(1)] == uids
    assert run.state() == calm[TWO]


def test_api_server_that_is_away_for_a_minute_costs_nothing(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start()
    run.train_on()
    uids = [run.uid(0), run.uid(1)]
    server = int((nodes.state / "kube-apiserver.pid").read_text())
    os.kill(server, signal.SIGSTOP)
    try:
        time.sleep(60)
    finally:
        os.kill(server, signal.SIGCONT)
    run.end()
    assert [run.uid(0), run.uid(1)] == uids
    assert run.state() == calm[TWO]


def test_a_node_that_is_gone_for_good_costs_what_was_not_committed(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start(*ONE)
    run.train_on()
    [pod] = nodes.pods(run.name)
    node = pod["spec"]["nodeName"]
    number = int(node.removeprefix("node-"))
    nodes.stop_service(f"kubelet-{number}")
    nodes.stop_service(f"containerd-{number}")
    nodes.end_containers(node)
    try:
        run.says(node, "does not answer", seconds=600)
        before = run.committed()
        nodes.kubectl("delete", "node", node)
        run.says("node", "gone", seconds=600)
        run.end()
        assert run.committed() > before
        assert [row["spec"]["nodeName"] for row in nodes.pods(run.name)] != [node]
        run.resumed()
    finally:
        nodes.start_service(f"containerd-{number}")
        nodes.start_service(f"kubelet-{number}")
        nodes.fit_out(node)
    assert run.state() == calm[ONE]


def test_cancel_of_a_run_that_waits_for_a_node_leaves_nothing(start: Any, nodes: Any) -> None:
    names = ("node-0", "node-1")
    nodes.kubectl("cordon", *names)
    try:
        run = start()
        run.says("pending", "cordon")
        nodes.launch("cancel", run.name)
        wait_for("the pods' end", lambda: not nodes.living(run.name), 30)
    finally:
        nodes.kubectl("uncordon", *names)
    assert not run.store.exists()


@pytest.mark.parametrize("phase", ["starting", "training"])
def test_cancel_ends_all_pods_and_keeps_what_is_committed(
    start: Any, nodes: Any, phase: str
) -> None:
    run = start()
    if phase == "training":
        run.train_on()
    else:
        wait_for(phase, lambda: run.processes("jobs.runtime", 0))
    before = run.committed()
    # Sooner than the grace period ends: who does not hear of it would be killed then.
    nodes.launch("cancel", run.name, seconds=45)
    wait_for("the pods' end", lambda: not nodes.living(run.name), 60)
    assert not run.processes("jobs.worker", 0) + run.processes("jobs.worker", 1)
    assert run.committed() >= before
    if phase == "training":
        assert run.committed() > before, "a step between two checkpoints was not committed"


def test_cancel_while_the_store_is_away_keeps_what_is_committed(
    start: Any, calm: Any, nodes: Any
) -> None:
    run = start(*ONE)
    run.train_on()
    nodes.s3.stop()
    try:
        # All steps are done, and wait to be sent.
        wait_for("the workers' end", lambda: not run.processes("jobs.worker", 0))
        assert run.processes("jobs.sync", 0)
        before = run.committed()
        nodes.launch("cancel", run.name)
        wait_for("the pods' end", lambda: not nodes.living(run.name), 60)
    finally:
        nodes.s3.start()
    assert run.committed() == before
    nodes.launch(*ONE, "--name", run.name)
    run.end()
    assert run.state() == calm[ONE]
