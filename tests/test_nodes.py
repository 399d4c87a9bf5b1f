"""Quantities of the API, and what a pod asks for, as the scheduler counts it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.backends.nodefacts import counted
from launcher.nodes import Node, Taint, amount, node, requested

NPU = "huawei.com/Ascend910"


@pytest.mark.parametrize(
    ("resource", "quantity", "expected"),
    [
        ("cpu", "16", 16000), ("cpu", "100m", 100), ("cpu", "0.5", 500), ("cpu", "1500u", 2),
        ("memory", "64Gi", 64 << 30), ("memory", "24581692Ki", 24581692 << 10),
        ("memory", "1e3", 1000), ("memory", "128M", 128_000_000), ("memory", "1073741824", 1 << 30),
        ("memory", "400m", 0), (NPU, "8", 8), (NPU, 8, 8),
        (NPU, "2k", 2000), (NPU, "many", 0), (NPU, None, 0), (NPU, "1.2.3", 0), (NPU, "8Q", 0),
    ],
)  # fmt: skip
def test_a_quantity(resource: str, quantity: Any, expected: int) -> None:
    assert amount(resource, quantity) == expected


def asking(**more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": "1", NPU: "2"}}, **more}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {}),
        ({"containers": [asking(), asking()]}, {"cpu": 2000, NPU: 4}),
        ({"containers": [{"resources": {"limits": {NPU: "2"}}}]}, {NPU: 2}),
        (  # steps of initialisation come one after the other
            {"containers": [{}], "initContainers": [asking(), asking()]}, {"cpu": 1000, NPU: 2},
        ),
        (  # a sidecar stays
            {"containers": [asking()], "initContainers": [asking(restartPolicy="Always")]},
            {"cpu": 2000, NPU: 4},
        ),
        (
            {"containers": [{}], "initContainers": [asking(restartPolicy="Always"), asking()]},
            {"cpu": 2000, NPU: 4},
        ),
        ({"containers": [asking()], "overhead": {"cpu": "250m"}}, {"cpu": 1250, NPU: 2}),
    ],
)  # fmt: skip
def test_what_a_pod_asks_for(spec: Any, expected: dict[str, int]) -> None:
    assert requested(spec) == expected


def test_a_node_of_the_api() -> None:
    found = node(
        {
            "metadata": {"name": "atlas-1", "labels": {"kubernetes.io/arch": "arm64"}},
            "spec": {
                "unschedulable": True,
                "taints": [{"key": "team", "value": "vision", "effect": "NoSchedule"}],
            },
            "status": {
                "allocatable": {NPU: "8", "cpu": "192"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    )
    assert found == Node(
        name="atlas-1",
        labels={"kubernetes.io/arch": "arm64"},
        taints=(Taint("team", "vision", "NoSchedule"),),
        ready=True,
        unschedulable=True,
        architecture="arm64",
        allocatable={NPU: 8, "cpu": 192000},
    )
    assert [str(taint) for taint in found.taints] == ["team=vision:NoSchedule"]
    assert found.free(NPU) is None


def test_nothing_is_known_of_an_empty_node() -> None:
    assert node({}) == Node(name="", labels={}, ready=False, allocatable={})


def page(*pods: Any) -> bytes:
    """Return a page of pods as the server writes it."""
    row = {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": pods}
    return json.dumps(row, separators=(",", ":")).encode()


def placed(name: str, npus: int, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, **metadata},
        "spec": {
            "containers": [
                {"name": "main", "resources": {"requests": {NPU: str(npus), "cpu": "1"}}}
            ],
            "nodeName": "atlas-1",
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


BESIDE = {"metadata": {"name": "b"}, "spec": {"nodeName": "atlas-2"}, "status": {}}
# What kubectl apply leaves in an annotation: another pod as text.
APPLIED = {"annotations": {"last-applied": page(placed("text", 5)).decode()}}


@pytest.mark.parametrize(
    "pods",
    [
        [placed("a", 2), BESIDE, placed("c", 4)],
        [placed("a", 2, **APPLIED), placed("c", 4, **APPLIED)],
        [{"metadata": {"name": "b", **APPLIED}, "spec": {}, "status": {}}, placed("c", 6)],
        # Written in another order, or without a status.
        [dict(reversed(row.items())) for row in (placed("a", 2), BESIDE, placed("c", 4))],
        [placed("a", 2), {key: placed("c", 4)[key] for key in ("metadata", "spec")}],
    ],
)
def test_what_pods_ask_for_is_counted_without_parsing_all(pods: Any) -> None:
    found = counted(page(*pods), NPU)
    assert {node: asked[NPU] for node, asked in found.items()} == {"atlas-1": 6}


def test_an_empty_page_counts_nothing() -> None:
    assert counted(page(), NPU) == {}
