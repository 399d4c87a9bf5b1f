"""Why no node takes a pod: real scheduler, nodes played by KWOK; each line is a golden file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from explained import blind
from stagehand import NPU, Stage, check, until

from launcher import fields
from launcher.backends import nodefacts
from launcher.backends.apiserver import ApiServer

pytestmark = pytest.mark.cluster


def scheduler_has_spoken(found: Any) -> bool:
    return any(fields.condition(pod, "PodScheduled", "False") for pod in found.pods)


def own_scheduler(manifest: Any) -> None:
    manifest["spec"]["template"]["spec"]["schedulerName"] = "nobody"


def claiming(manifest: Any) -> None:
    volumes = manifest["spec"]["template"]["spec"]["volumes"]
    volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": "pictures"}})


def far_from_here(manifest: Any) -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["far"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    manifest["spec"]["template"]["spec"]["affinity"] = {"nodeAffinity": required}


@pytest.fixture(scope="module")
def stage(explaining: Any) -> Iterator[Stage]:
    with explaining() as made:
        made.node("atlas-full-1", "full")
        made.node("atlas-full-2", "full")
        made.node("atlas-half", "half", 4)
        made.node("atlas-pair-1", "pair")
        made.node("atlas-pair-2", "pair")
        made.node("atlas-lean", "lean", room={"memory": "700Gi"})
        made.node("atlas-bare", "bare", room={NPU: "0"})
        made.node("atlas-fast", "fast", labels={"disk": "fast", "accelerator-type": "module-a3-16"})
        for name in ("full-1", "full-2"):  # four NPUs and eight are taken
            made.submit(f"filler-{name}", npus=4 * int(name[-1]), edit=on_node(f"atlas-{name}"))
        made.submit("filler-lean", npus=1, pool="lean", memory_per_npu_gib=600)
        for name in ("filler-full-1", "filler-full-2", "filler-lean"):
            made.pod(name)
        made.submit("fits-later", pool="full")
        made.submit("fits-later-twice", pool="full", nodes=2)
        made.submit("never-npus", pool="half")
        made.submit("never-memory", pool="lean", npus=8, memory_per_npu_gib=100)
        made.submit("never-cpu", pool="half", npus=4, cpu_per_npu=200)
        made.submit("never-label", edit=selecting(**{"accelerator-type": "module-910b-16"}))
        made.submit("never-pool", pool="nowhere")
        made.submit("never-labels-together", edit=selecting(pool="full", disk="fast"))
        made.submit("never-affinity", pool="pair", edit=far_from_here)
        made.submit("never-resource", plugin="hami", edit=selecting())
        made.submit("never-plugin-off", pool="bare")
        made.submit("never-gang", pool="full", nodes=3)
        made.submit("memory-later", pool="lean", npus=2, memory_per_npu_gib=100)
        made.submit("no-scheduler", edit=own_scheduler)
        made.submit("no-claim", pool="pair", npus=1, edit=claiming)
        yield made


@pytest.fixture(scope="module")
def more(stage: Stage) -> Stage:
    """Add nodes that would blur what the scheduler says of the others."""
    taint = {"key": "team", "value": "vision", "effect": "NoSchedule"}
    stage.node("atlas-tainted-1", "tainted", taints=[taint])
    stage.node("atlas-tainted-2", "tainted", taints=[taint])
    stage.node("atlas-cordoned", "cordoned", cordoned=True)
    stage.submit("never-taint", pool="tainted")
    stage.submit("cordoned", pool="cordoned")
    return stage


def on_node(name: str) -> Any:
    def edit(manifest: Any) -> None:
        manifest["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": name}

    return edit


def selecting(**labels: str) -> Any:
    def edit(manifest: Any) -> None:
        manifest["spec"]["template"]["spec"]["nodeSelector"] = labels

    return edit


SCENES = (
    "fits-later", "fits-later-twice", "never-npus", "never-memory", "never-cpu", "never-label",
    "never-pool", "never-labels-together", "never-affinity", "never-resource", "never-plugin-off",
    "never-gang", "memory-later", "no-claim",
)  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
def test_who_sees_nodes_is_told_which(stage: Stage, scene: str) -> None:
    check(stage, scene, when=scheduler_has_spoken)


@pytest.mark.parametrize("scene", ["fits-later", "never-npus", "never-label"])
def test_who_sees_no_nodes_is_told_less(stage: Stage, scene: str) -> None:
    check(stage, f"{scene}-blind", run=scene, seen=blind, when=scheduler_has_spoken)


def test_who_may_not_list_all_pods_is_told_what_nodes_have(stage: Stage) -> None:
    def half_blind(found: Any) -> Any:
        return replace(found, nodes=tuple(replace(node, used=None) for node in found.nodes))

    check(
        stage, "fits-later-half-blind", run="fits-later", seen=half_blind, when=scheduler_has_spoken
    )


def test_a_scheduler_that_does_not_run_is_told(stage: Stage) -> None:
    def later(found: Any) -> Any:
        return replace(blind(found), now=found.now + timedelta(minutes=2))

    check(stage, "no-scheduler", seen=later, when=lambda found: found.pods)


@pytest.mark.parametrize("scene", ["never-taint", "cordoned"])
def test_nodes_that_are_closed_to_it_are_told(more: Stage, scene: str) -> None:
    check(more, scene, when=scheduler_has_spoken)
    check(more, f"{scene}-blind", run=scene, seen=blind, when=scheduler_has_spoken)


def test_facts_are_what_one_may_read(
    stage: Stage, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = f"/api/v1/namespaces/{stage.namespace}/serviceaccounts/default"
    token = stage.api.post(f"{account}/token", {"spec": {}})["status"]["token"]
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "other", token)))
    assert nodefacts.nodes(ApiServer(), NPU) is None

    rbac, name = "/apis/rbac.authorization.k8s.io/v1", f"nodes-{stage.namespace}"
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    whom = {"kind": "ServiceAccount", "name": "default", "namespace": stage.namespace}
    stage.api.post(f"{rbac}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [whom]}
    stage.api.post(f"{rbac}/clusterrolebindings", binding)
    found = until(lambda: nodefacts.nodes(ApiServer(), NPU), "the right to list nodes")
    assert {row.name for row in found} == set(stage.nodes)
    assert all(row.used is None for row in found)

    known = {row.name: row for row in nodefacts.nodes(stage.api, NPU) or ()}
    assert known["atlas-full-1"].used == {NPU: 4, "cpu": 64000, "memory": 256 << 30} | {
        "ephemeral-storage": (known["atlas-full-1"].used or {})["ephemeral-storage"]
    }
    assert known["atlas-full-2"].free(NPU) == 0
    assert known["atlas-bare"].used is None
    for kind in ("clusterrolebindings", "clusterroles"):
        stage.api.delete(f"{rbac}/{kind}/{name}", {})
