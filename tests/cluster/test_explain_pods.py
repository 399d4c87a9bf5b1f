"""Why a pod that has a node does not run, how it ended, and what comes then.

Real Job controller and scheduler. KWOK plays what containers do; what only a kubelet finds out is
written with a kubelet's identity, in containerd's and the kubelet's own words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from explained import blind
from kubeletwords import ENDS, EVENTS, REASONS
from stagehand import HELD, IMAGE, NPU, Stage, check, ended, now

from launcher import fields
from launcher.backends import nodefacts
from launcher.backends.apiserver import ApiServer

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def stage(explaining: Any, cluster: Any) -> Iterator[Stage]:
    with explaining() as made:
        large = {"cpu": "8000", "memory": "30000Gi", "ephemeral-storage": "300Ti", "pods": "500"}
        made.node("atlas-1", "all", npus=400, room=large)
        made.node("atlas-contested", "contested")
        made.node("atlas-silent", "silent", played=False)
        made.node("atlas-lost", "lost", played=False)
        ready(made, "atlas-silent", "atlas-lost")
        for scene in (*REASONS, *EVENTS):
            made.submit(scene, pool="all", npus=1, play=HELD)
        for code, said in ENDS.items():
            play = {"play/exit": str(code), "play/said": f"{code} {said}" if said else ""}
            made.submit(f"code-{code}", pool="all", npus=1, play=play)
            if code in (1, 69, 79, 126, 139):  # counted: the last retry
                made.submit(f"last-code-{code}", pool="all", npus=1, play=play, retries=0)
        again = {"play/exit": "69", "play/said": f"69 {ENDS[69]}"}
        made.submit("retries-used", pool="all", npus=1, play=again, retries=1)
        made.submit("running", pool="all", npus=1)
        made.submit("drained", pool="all", npus=1, play={"play/stays": "true"})
        made.submit("cancelled", pool="all", npus=1, play={"play/stays": "true"})
        made.submit("one-of-three", pool="all", npus=8, nodes=3, play=HELD)
        made.submit("deadline", pool="all", npus=1, edit=hurried)
        made.submit("hand-suspended", pool="all", npus=1, edit=suspended)
        made.submit("node-silent", pool="silent")
        made.submit("node-lost", pool="lost", edit=impatient)
        made.submit("second-attempt", pool="all", npus=1, play=HELD)
        priority(cluster, made)
        for name in ("node-silent", "node-lost"):
            made.says(name, up())
        ready(made, "atlas-lost", status="False")  # first: one node in 10 s is given up
        made.says("second-attempt", ended(69, message="69 unavailable: s3://b/r: no answer"))
        yield made


def ready(stage: Stage, *names: str, status: str = "True") -> None:
    for name in names:
        row = {"type": "Ready", "status": status, "reason": "KubeletReady", "message": "posting"}
        stage.kubelet(name, f"/api/v1/nodes/{name}/status", {"status": {"conditions": [row]}})


def up() -> dict[str, Any]:
    """Return the status of a pod that runs."""
    row = {"name": "main", "image": IMAGE, "imageID": "", "ready": True, "restartCount": 0}
    row["state"] = {"running": {"startedAt": now()}}
    conditions = [{"type": "Ready", "status": "True"}]
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [row]}


def hurried(manifest: Any) -> None:
    manifest["spec"]["activeDeadlineSeconds"] = 1


def suspended(manifest: Any) -> None:
    manifest["spec"]["suspend"] = True


def impatient(manifest: Any) -> None:
    for key in ("not-ready", "unreachable"):
        manifest["spec"]["template"]["spec"]["tolerations"].append(
            {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": 1}
        )  # fmt: skip


def priority(cluster: Any, stage: Stage) -> None:
    stage.submit("preempted", pool="contested", play={"play/stays": "true"})
    stage.pod("preempted")
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    name = f"urgent-{stage.namespace}"
    stage.api.post(path, {"metadata": {"name": name}, "value": 1000})
    stage.submit("urgent", pool="contested", priority_class=name)


@pytest.mark.parametrize("scene", REASONS)
def test_what_a_kubelet_says(stage: Stage, scene: str) -> None:
    stage.says(scene, fresh(REASONS[scene]))
    complete = scene != "memory-and-well"
    check(
        stage, scene, when=lambda found: any(map(spoken, found.pods))
        and (complete or fields.condition(found.job, "Complete", "True")),
    )  # fmt: skip


def fresh(status: Any) -> Any:
    """Return a status whose program has ended just now."""
    row = copy.deepcopy(status)
    for container in fields.rows(row, "containerStatuses"):
        if "terminated" in container["state"]:
            container["state"]["terminated"]["finishedAt"] = now()
    return row


def spoken(pod: Any) -> bool:
    return bool(fields.statuses(pod) or fields.text(pod, "status", "reason"))


def with_nodes(found: Any) -> Any:
    """Return what is seen once facts of nodes are asked for, half an hour after a pod's grace."""
    ending = fields.at(found.pods[0], "metadata", "deletionTimestamp")
    now = ending + timedelta(minutes=30) if ending else found.now
    return replace(found, nodes=nodefacts.nodes(ApiServer(), NPU), now=now)


def test_a_node_that_does_not_answer(stage: Stage) -> None:
    ready(stage, "atlas-silent", status="False")
    check(
        stage,
        "node-silent",
        seen=with_nodes,
        when=lambda found: not all(n.ready for n in found.nodes),
    )
    # After 50 s of silence the node controller says so to those who see no nodes.
    whom = "system:serviceaccount:kube-system:node-controller"
    now_false = {"type": "Ready", "status": "False", "lastTransitionTime": now()}
    stage.says("node-silent", {**up(), "conditions": [now_false]}, whom=whom)
    stage.tells("node-silent", "NodeNotReady", "Node is not ready", whom=whom)
    check(
        stage,
        "node-silent-blind",
        run="node-silent",
        when=lambda found: any(row["reason"] == "NodeNotReady" for row in found.events),
    )


def test_a_node_that_is_lost(stage: Stage) -> None:
    """The taint manager has given its pod up, and nobody is there to end it."""
    check(stage, "node-lost", seen=with_nodes, when=deleted)
    check(stage, "node-lost-blind", run="node-lost", seen=lambda found: blind(with_nodes(found)))


@pytest.mark.parametrize("scene", EVENTS)
def test_what_a_kubelet_tells_in_events(stage: Stage, scene: str) -> None:
    stage.tells(scene, *EVENTS[scene])
    reason = EVENTS[scene][0]
    check(stage, scene, when=lambda found: any(row["reason"] == reason for row in found.events))


@pytest.mark.parametrize("code", ENDS)
def test_each_exit_code(stage: Stage, code: int) -> None:
    def over(found: Any) -> bool:
        final = fields.condition(found.job, "Failed", "True") if code in (65, 70, 74, 78) else True
        return bool(final and any(fields.ended(pod) for pod in found.pods))

    check(stage, f"code-{code}", seen=soon, when=over)


def soon(found: Any) -> Any:
    """Return what is seen one second after the last attempt has ended: before the next one."""
    if fields.condition(found.job, "Failed"):
        return found
    ends = [fields.at(fields.ended(pod), "finishedAt") for pod in found.pods]
    if not ends or ends[0] is None:
        return found
    return replace(found, pods=found.pods[:1], now=ends[0] + timedelta(seconds=1))


@pytest.mark.parametrize("code", [1, 69, 79, 126, 139])
def test_exit_codes_that_leave_no_retry(stage: Stage, code: int) -> None:
    check(stage, f"last-code-{code}", when=failed)


def failed(found: Any) -> Any:
    return fields.condition(found.job, "Failed", "True")


def test_running(stage: Stage) -> None:
    check(stage, "running", when=lambda found: any(map(spoken, found.pods)))


def test_one_pod_of_three_is_named(stage: Stage) -> None:
    stage.says("one-of-three", REASONS["image-not-found"], 1)
    stage.says("one-of-three", REASONS["secret-missing"], 2)
    check(stage, "one-of-three", when=lambda found: sum(map(spoken, found.pods)) == 2)


def test_a_drained_pod_stops_and_is_told(stage: Stage) -> None:
    name = fields.name(stage.pod("drained"))
    path = f"/api/v1/namespaces/{stage.namespace}/pods/{name}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    stage.api.post(path, body)
    check(stage, "drained", when=deleted)


def deleted(found: Any) -> bool:
    return any(fields.at(pod, "metadata", "deletionTimestamp") for pod in found.pods)


def test_a_preempted_pod_stops_and_is_told(stage: Stage) -> None:
    check(stage, "preempted", when=deleted)


def test_a_cancelled_run_tells_its_grace(stage: Stage) -> None:
    stage.pod("cancelled")
    path = f"/apis/batch/v1/namespaces/{stage.namespace}/jobs/cancelled"
    stage.api.delete(path, {"propagationPolicy": "Foreground"})
    check(stage, "cancelled", when=deleted)


def test_a_deadline(stage: Stage) -> None:
    check(stage, "deadline", when=failed)


def test_suspended_by_hand(stage: Stage) -> None:
    check(stage, "hand-suspended", seen=blind)


def test_the_last_retry_is_used_up(stage: Stage) -> None:
    check(stage, "retries-used", when=failed)


def test_attempts_before_are_told(stage: Stage) -> None:
    check(
        stage,
        "second-attempt",
        when=lambda found: len(found.pods) == 2 and found.pods[1]["spec"].get("nodeName"),
    )
