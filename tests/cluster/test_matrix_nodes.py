"""Runs over several nodes as the real controllers and scheduler place them, on nodes of KWOK's."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from conftest import wait_for

from jobs.specs import InferSpec, PromptRow, TrainSpec
from launcher import manifests
from launcher.backends.kubernetes import Kubernetes
from launcher.plan import plan
from launcher.settings import Target

pytestmark = pytest.mark.cluster

INFER = InferSpec(prompts=(PromptRow(line=1, prompt="a red circle"),))
TARGET = Target(
    image="registry.example/jobs:1",
    store="s3://bucket/runs",
    plugin="cce",  # asks for no label of the nodes
    resource=f"example.com/npu-{secrets.token_hex(4)}",  # which no other test's nodes have
)


@pytest.fixture
def submit(
    cluster: Any, controllers: None, scheduler: None, namespace: str
) -> Callable[..., list[Any]]:
    """Return a function that creates a run and returns what lists its pods, by index."""
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())

    def create(name: str, spec: Any, target: Target = TARGET, **amounts: Any) -> Callable[[], Any]:
        made = plan(spec, dataclasses.replace(target, namespace=namespace), name=name, **amounts)
        Kubernetes().submit(made, manifests.render(made, manifests.base(spec.kind)))

        def pods() -> list[Any]:
            selector = f"batch.kubernetes.io/job-name={name}"
            found = core.list_namespaced_pod(namespace, label_selector=selector).items
            return sorted(found, key=lambda pod: pod.metadata.labels[INDEX])

        return pods

    return create


@pytest.fixture
def open_node(cluster: Any, controllers: None, new_node: Callable[..., str]) -> Callable[..., str]:
    """Return a function that makes a node and waits until the scheduler may use it."""
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())

    def make(**room: Any) -> str:
        name = new_node(resource=TARGET.resource, **room)
        # Ready is not enough: the taint of its first moments goes later.
        wait_for(lambda: not core.read_node(name).spec.taints, "the taint to go")
        return name

    return make


INDEX = "batch.kubernetes.io/job-completion-index"


def placed(pods: list[Any]) -> list[str]:
    return [pod.spec.node_name for pod in pods if pod.spec.node_name]


def test_training_takes_whole_nodes_and_each_pod_has_a_name(submit, open_node) -> None:
    nodes = {open_node() for _ in range(3)}
    pods = submit("cat", TrainSpec(), npus=8, nodes=2)
    wait_for(lambda: len(placed(pods())) == 2, "both pods' nodes")
    assert len(set(placed(pods()))) == 2
    assert [(pod.spec.hostname, pod.spec.subdomain) for pod in pods()] == [
        ("cat-0", "peers"),
        ("cat-1", "peers"),
    ]
    environment = {row.name: row.value for row in pods()[1].spec.containers[0].env}
    assert environment["JOB_MASTER"] == "cat-0.peers"

    # What the warning says: without a gang the next one gets a part of its nodes.
    half = submit("dog", TrainSpec(), npus=8, nodes=2)
    wait_for(lambda: len(placed(half())) == 1, "one pod's node")
    wait_for(
        lambda: [pod for pod in half() if pod.status.conditions and not pod.spec.node_name],
        "the other's refusal",
    )
    assert {*placed(pods()), *placed(half())} == nodes


def test_pods_that_fit_on_one_node_would_rather_not(submit, open_node) -> None:
    """The first node is so large that the scheduler takes it for both, were it not for the wish."""
    large = open_node(cpu=9000, memory="90000Gi")
    small = open_node()
    pods = submit("cat", INFER, npus=4, nodes=2)
    wait_for(lambda: len(placed(pods())) == 2, "both pods' nodes")
    assert sorted(placed(pods())) == sorted([large, small])
    # It is no more than a wish: where there is one node for three pods, none waits.
    three = submit("dog", INFER, npus=1, nodes=3)
    wait_for(lambda: len(placed(three())) == 3, "all pods' nodes")


def test_a_run_in_kueues_queue_has_no_pod_and_no_clock_until_it_is_let_go(
    cluster, submit, namespace
) -> None:
    from kubernetes import client

    batch = client.BatchV1Api(cluster.api())
    queued = dataclasses.replace(TARGET, queue="npus", queue_engine="kueue")
    pods = submit("cat", TrainSpec(), queued, npus=8, nodes=2, max_seconds=3600)

    def job() -> Any:
        return batch.read_namespaced_job("cat", namespace)

    wait_for(lambda: [row for row in job().status.conditions or () if row.type == "Suspended"],
             "the controller's word")  # fmt: skip
    assert pods() == []
    assert job().status.start_time is None
    assert job().spec.active_deadline_seconds == 3540
    batch.patch_namespaced_job("cat", namespace, {"spec": {"suspend": False}})  # as Kueue does
    wait_for(lambda: len(pods()) == 2, "the pods")
    wait_for(lambda: job().status.start_time, "the clock")
