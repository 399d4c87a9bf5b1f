"""What a Job carries for Kueue, Volcano and MindCluster; the real CRDs judge it in cluster/."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.specs import InferSpec, PromptRow, TrainSpec
from launcher import queues
from launcher.errors import LauncherError, Misconfigured
from launcher.plan import JobPlan, plan
from launcher.settings import Target

CLUSTER = Target(image="registry.example/jobs:1", store="s3://bucket/runs")
INFER = InferSpec(prompts=(PromptRow(line=1, prompt="a red circle"),))
KUEUE: dict[str, Any] = {"queue": "npus", "queue_engine": "kueue"}
VOLCANO: dict[str, Any] = {"queue": "npus", "queue_engine": "volcano"}


def made(where: dict[str, Any], spec: Any = None, **values: Any) -> JobPlan:
    target = dataclasses.replace(CLUSTER, **where)
    return plan(spec or TrainSpec(), target, **({"name": "cat-1", "npus": 8} | values))


def test_without_a_queue_nothing_is_carried() -> None:
    found = made({})
    assert (found.job_labels, found.job_annotations, found.pod_annotations) == ({}, {}, {})
    assert (found.scheduler, found.suspended) == ("", False)
    assert "ring-controller.atlas" not in found.labels


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("spec", [TrainSpec(), INFER])
def test_kueue_finds_its_label_on_a_suspended_job_and_none_on_the_pods(
    nodes: int, spec: Any
) -> None:
    found = made(KUEUE, spec, nodes=nodes)
    assert found.suspended
    assert found.job_labels == {"kueue.x-k8s.io/queue-name": "npus"}
    assert not [key for key in found.labels if "kueue" in key]
    assert (found.job_annotations, found.pod_annotations, found.scheduler) == ({}, {}, "")


def test_kueue_orders_by_a_class_of_its_own_or_the_pods() -> None:
    found = made(KUEUE | {"priority_class": "high", "workload_priority": "urgent"})
    assert found.job_labels["kueue.x-k8s.io/priority-class"] == "urgent"
    assert found.priority_class == "high"
    assert (
        "kueue.x-k8s.io/priority-class" not in made(KUEUE | {"priority_class": "high"}).job_labels
    )
    assert made({"workload_priority": "urgent"}).job_labels == {}


@given(st.integers(1, 10**8))
def test_the_jobs_own_clock_ends_before_kueues(most: int) -> None:
    found = made(KUEUE, max_seconds=most)
    assert found.job_labels["kueue.x-k8s.io/max-exec-time-seconds"] == str(most)
    assert max(1, most - 60) <= found.deadline_seconds <= most
    assert most < 20 or found.deadline_seconds < most
    assert made({}, max_seconds=most).deadline_seconds == most
    assert made(VOLCANO, max_seconds=most).deadline_seconds == most


def test_volcano_places_training_as_a_gang() -> None:
    found = made(VOLCANO, nodes=4)
    queue = {"scheduling.volcano.sh/queue-name": "npus"}
    assert found.scheduler == "volcano"
    assert not found.suspended
    assert found.job_annotations == queue | {"scheduling.volcano.sh/group-min-member": "4"}
    assert found.pod_annotations == queue | {"huawei.com/schedule_minAvailable": "4"}
    assert found.labels["ring-controller.atlas"] == "ascend-910b"
    assert found.job_labels == {}


@pytest.mark.parametrize(("spec", "nodes"), [(INFER, 4), (TrainSpec(), 1), (INFER, 1)])
def test_pods_that_work_for_themselves_are_no_gang(spec: Any, nodes: int) -> None:
    found = made(VOLCANO, spec, nodes=nodes)
    queue = {"scheduling.volcano.sh/queue-name": "npus"}
    assert found.job_annotations == found.pod_annotations == queue


@pytest.mark.parametrize("plugin", ["cce", "hami"])
def test_mindclusters_marks_are_for_mindcluster(plugin: str) -> None:
    found = made(VOLCANO | {"plugin": plugin}, nodes=2)
    assert found.job_annotations["scheduling.volcano.sh/group-min-member"] == "2"
    assert "huawei.com/schedule_minAvailable" not in found.pod_annotations
    assert "ring-controller.atlas" not in found.labels


@pytest.mark.parametrize(
    ("server", "ring"), [("module", "ascend-910"), ("module-a3-16", "ascend-910b")]
)
def test_the_ring_label_is_the_chips(server: str, ring: str) -> None:
    found = made(VOLCANO | {"server": server}, npus=1)
    assert found.labels["ring-controller.atlas"] == ring


def test_volcano_may_be_meant_by_its_scheduler_alone() -> None:
    named = made({"scheduler": "volcano", "queue": "npus"}, nodes=2)
    assert named == made(VOLCANO, nodes=2)
    gang = made({"scheduler": "volcano"}, nodes=2)
    assert gang.job_annotations == {"scheduling.volcano.sh/group-min-member": "2"}
    renamed = made(VOLCANO | {"scheduler": "volcano-npu"}, nodes=2)
    assert renamed.scheduler == "volcano-npu"
    assert renamed.job_annotations == named.job_annotations


def test_kueue_may_let_go_what_volcano_places() -> None:
    found = made(KUEUE | {"scheduler": "volcano"}, nodes=2)
    assert (found.suspended, found.scheduler) == (True, "volcano")
    assert found.job_labels == {"kueue.x-k8s.io/queue-name": "npus"}
    assert found.job_annotations == {"scheduling.volcano.sh/group-min-member": "2"}
    assert found.pod_annotations == {"huawei.com/schedule_minAvailable": "2"}


def test_an_engine_without_a_queue_is_volcanos_default_or_none() -> None:
    assert made({"queue_engine": "kueue"}) == made({})
    volcano = made({"queue_engine": "volcano"})
    assert (volcano.scheduler, volcano.job_annotations) == ("volcano", {})


def refused(where: dict[str, Any]) -> LauncherError:
    with pytest.raises(Misconfigured) as caught:
        made(where)
    assert "\n" not in caught.value.text + caught.value.hint
    return caught.value


def test_a_queue_of_nobody_is_refused() -> None:
    error = refused({"queue": "npus"})
    assert error.text == "queue 'npus': queue_engine is not set"
    for way in ('"kueue"', '"volcano"', "LAUNCHER_QUEUE_ENGINE", "--queue-engine"):
        assert way in error.hint


@pytest.mark.parametrize("key", ["queue", "priority_class", "workload_priority"])
@pytest.mark.parametrize("value", ["My Queue", "-a", "a" * 64, "a/b", "\u00e9", "a\n"])
def test_a_name_that_no_object_has_is_refused(key: str, value: str) -> None:
    error = refused(KUEUE | {key: value})
    told = value if len(value) < 64 else f"{value[:63]}..."
    assert error.text == f"{key}: {told!r} is no name of an object"


@pytest.mark.parametrize(
    ("where", "whole"),
    [
        ({}, False), (KUEUE, True), (VOLCANO, True), ({"scheduler": "volcano"}, True),
        ({"queue_engine": "kueue"}, False), ({"queue_engine": "volcano"}, True),
        ({"scheduler": "other"}, False),
    ],
)  # fmt: skip
def test_which_queues_place_a_run_whole(where: dict[str, Any], whole: bool) -> None:
    assert queues.places_whole(dataclasses.replace(CLUSTER, **where)) is whole
