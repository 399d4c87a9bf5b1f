"""Why a Job has no pods: quota, limits, admission, Kueue, Volcano; each line is a golden file.

Quota, LimitRange and admission are the server's own. Of Kueue and Volcano there are only the CRDs:
their objects are created with the status that their controllers were seen to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from stagehand import NPU, Stage, check, now, until

from launcher import fields
from launcher.backends.apiserver import api_exception
from launcher.why.queueing import QUEUE_LABEL

pytestmark = pytest.mark.cluster

WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{}/workloads"
GROUPS = "/apis/scheduling.volcano.sh/v1beta1/namespaces/{}/podgroups"
NO_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for huawei.com/Ascend910 in"
    " flavor module-910b-8, 8 more needed"
)
NEVER = (
    "couldn't assign flavors to pod set main: insufficient quota for huawei.com/Ascend910 in flavor"
    " module-910b-8, previously considered podsets requests (0) + current podset request (24) >"
    " maximum capacity (16)"
)
UNCOVERED = (
    "couldn't assign flavors to pod set main: resource huawei.com/Ascend910 unavailable in"
    " ClusterQueue"
)
NO_FLAVOR = (
    "couldn't assign flavors to pod set main: flavor module-910b-8 doesn't match node affinity"
)
GANG = (
    "5/5 tasks in gang unschedulable: pod group is not ready, 5 Pending, 5 minAvailable; Pending: 5"
    " Unschedulable"
)
# Scene -> what Kueue's controller writes into the Workload: conditions, other status, spec.
KUEUE: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any]]] = {
    "kueue-later": ([("QuotaReserved", "False", "Pending", NO_QUOTA)], {}, {"priority": 10}),
    "kueue-never": ([("QuotaReserved", "False", "Pending", NEVER)], {}, {}),
    "kueue-uncovered": ([("QuotaReserved", "False", "Pending", UNCOVERED)], {}, {}),
    "kueue-no-flavor": ([("QuotaReserved", "False", "Pending", NO_FLAVOR)], {}, {}),
    "kueue-no-queue": (
        [("QuotaReserved", "False", "Inadmissible", "LocalQueue npus doesn't exist")], {}, {},
    ),
    "kueue-new": ([], {}, {"priority": 5}),
    "kueue-preempted": (
        [
            ("QuotaReserved", "False", "Pending", NO_QUOTA),
            ("Evicted", "True", "Preempted", "Preempted to accommodate a workload"),
        ],
        {}, {"priority": 20},
    ),
    "kueue-stopped": (
        [("Evicted", "True", "Deactivated", "The workload is deactivated")], {}, {"active": False},
    ),
    "kueue-deadline": (
        [("Evicted", "True", "DeactivatedDueToMaximumExecutionTimeExceeded", "exceeded")],
        {}, {"active": False},
    ),
    "kueue-check": (
        [("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue npus")],
        {"admissionChecks": [
            {"name": "budget", "state": "Pending", "message": "waits for approval",
             "lastTransitionTime": now()}
        ]}, {},
    ),
    "kueue-admitted": (
        [("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", "")],
        {}, {},
    ),
}  # fmt: skip
VOLCANO = {
    "volcano-gang": ("Inqueue", [("Unschedulable", "True", "NotEnoughResources", GANG)]),
    "volcano-queue-full": ("Pending", []),
}


@pytest.fixture(scope="module")
def stage(explaining: Any, crds: None) -> Iterator[Stage]:
    with explaining() as made:
        for scene in KUEUE:
            job = made.submit(scene, edit=queued)
            workload(made, job, scene)
        made.submit("kueue-unseen", edit=queued)
        for scene in VOLCANO:
            group(made, made.submit(scene, nodes=5, edit=gang), scene)
        yield made


def queued(manifest: Any) -> None:
    manifest["metadata"]["labels"][QUEUE_LABEL] = "npus"
    manifest["spec"]["suspend"] = True


def gang(manifest: Any) -> None:
    manifest["spec"]["template"]["spec"]["schedulerName"] = "volcano"


def workload(stage: Stage, job: Any, scene: str) -> None:
    """Create a Workload as Kueue does for a Job, with the status of a scene."""
    conditions, status, spec = KUEUE[scene]
    path, name = WORKLOADS.format(stage.namespace), f"job-{scene}-a1b2c"
    containers = [{"name": "main", "image": "registry.example/jobs:1"}]
    template = {"spec": {"containers": containers, "restartPolicy": "Never"}}
    body = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {"name": name, "labels": {"kueue.x-k8s.io/job-uid": fields.uid(job)}},
        "spec": {
            "queueName": "npus",
            "podSets": [{"name": "main", "count": 1, "template": template}],
            **spec,
        },
    }
    stage.api.post(path, body)
    if conditions or status:
        rows = {"conditions": [condition(*row) for row in conditions], **status}
        stage.api.patch(f"{path}/{name}/status", {"status": rows})


def group(stage: Stage, job: Any, scene: str) -> None:
    """Create a PodGroup as Volcano does for a Job, with the status of a scene."""
    phase, conditions = VOLCANO[scene]
    path, name = GROUPS.format(stage.namespace), f"podgroup-{fields.uid(job)}"
    rows = [condition(*row) | {"transitionID": "1"} for row in conditions]
    body = {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "PodGroup",
        "metadata": {"name": name},
        "spec": {"minMember": 5, "queue": "npus"},
        "status": {"phase": phase, "conditions": rows},  # no subresource
    }
    stage.api.post(path, body)


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": kind, "status": status, "reason": reason, "message": message or reason,
        "lastTransitionTime": now(),
    }  # fmt: skip


@pytest.mark.parametrize("scene", KUEUE)
def test_what_kueue_says(stage: Stage, scene: str) -> None:
    check(stage, scene, when=lambda found: found.workload)


def test_a_queue_that_has_not_seen_it(stage: Stage) -> None:
    check(stage, "kueue-unseen")


@pytest.mark.parametrize("scene", VOLCANO)
def test_what_volcano_says(stage: Stage, scene: str) -> None:
    check(stage, scene, when=lambda found: len(found.pods) == 5 and found.pod_group)


def quota(**hard: str) -> Any:
    return (
        "/api/v1/namespaces/{}/resourcequotas",
        {"metadata": {"name": "npus"}, "spec": {"hard": hard}},
    )


MOST = {"limits": [{"type": "Container", "max": {"memory": "256Gi"}}]}
LIMITS = ("/api/v1/namespaces/{}/limitranges", {"metadata": {"name": "small"}, "spec": MOST})
BASELINE = {"pod-security.kubernetes.io/enforce": "baseline"}


def policy(name: str) -> list[tuple[str, Any]]:
    """Return an admission policy and its binding, for the pods of one namespace."""
    path = "/apis/admissionregistration.k8s.io/v1"
    rules = [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    ]
    here = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    spec = {
        "matchConstraints": {"resourceRules": rules, "namespaceSelector": here},
        "validations": [{"expression": "false", "message": "only whole nodes on weekdays"}],
    }
    binding = {"policyName": f"weekdays-{name}", "validationActions": ["Deny"]}
    metadata = {"name": f"weekdays-{name}"}
    return [
        (f"{path}/validatingadmissionpolicies", {"metadata": metadata, "spec": spec}),
        (f"{path}/validatingadmissionpolicybindings", {"metadata": metadata, "spec": binding}),
    ]


# Scene -> labels of its namespace, objects in it, what the run asks for.
REFUSALS: dict[str, tuple[dict[str, str], list[Any], dict[str, Any]]] = {
    "quota-later": ({}, [quota(**{f"requests.{NPU}": "8"})], {"before": 4}),
    "quota-never": ({}, [quota(**{f"requests.{NPU}": "4"})], {}),
    "quota-pods": ({}, [quota(pods="0")], {}),
    "quota-unsaid": ({}, [quota(**{"limits.cpu": "9"})], {}),
    "limit-range": ({}, [LIMITS], {}),
    "pod-security": (BASELINE, [], {}),
    "policy": ({}, [], {}),
    "no-account": ({}, [], {"service_account": "runner"}),
    "no-priority-class": ({}, [], {"priority_class": "urgent"}),
}


@pytest.fixture(scope="module")
def refused(stage: Stage, cluster: Any) -> Iterator[Callable[[str], str]]:
    """Return a function from a scene to its namespace, where its run is refused its pods."""
    made: list[str] = []

    def name(scene: str) -> str:
        return f"{stage.namespace}-{scene}"

    for scene, (labels, objects, more) in REFUSALS.items():
        stage.api.post("/api/v1/namespaces", {"metadata": {"name": name(scene), "labels": labels}})
        cluster.make_default_account(name(scene))
        rows = policy(name(scene)) if scene == "policy" else objects
        for path, body in rows:
            stage.api.post(path.format(name(scene)), body)
            if "admission" in path:
                made.append(f"{path}/{body['metadata']['name']}")
        if "before" in more:
            until(partial(in_force, stage, "quota", name(scene)), "the quota")
            stage.submit("before", npus=more["before"], namespace=name(scene))
    for scene, (_, _, more) in REFUSALS.items():
        until(partial(in_force, stage, scene, name(scene)), f"what refuses {scene}")
        target = {key: value for key, value in more.items() if key != "before"}
        stage.submit(scene, namespace=name(scene), **target)
    yield name
    for path in made:
        stage.api.delete(path, {})
    for scene in REFUSALS:
        stage.api.delete(f"/api/v1/namespaces/{name(scene)}", {})


def quota_of(stage: Stage, namespace: str) -> dict[str, Any]:
    """Return the status of a namespace's only quota."""
    (found,) = stage.api.get(f"/api/v1/namespaces/{namespace}/resourcequotas")["items"]
    return dict(found.get("status") or {})


def in_force(stage: Stage, scene: str, namespace: str) -> bool:
    """Return whether the server asks what the scene is about: it takes it in some moments later."""
    if scene == "quota-later":
        return quota_of(stage, namespace).get("used", {}).get(f"requests.{NPU}") == "4"
    if scene.startswith("quota"):
        return bool(quota_of(stage, namespace).get("hard"))
    if scene == "policy":
        pod = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
        try:
            stage.api.post(f"/api/v1/namespaces/{namespace}/pods", pod, [("dryRun", "All")])
        except api_exception():
            return True
        return False
    return True


@pytest.mark.parametrize("scene", REFUSALS)
def test_why_pods_are_refused(stage: Stage, refused: Callable[[str], str], scene: str) -> None:
    check(stage, scene, namespace=refused(scene), when=lambda found: found.events)
