"""Every method x NPUs x nodes x queue, judged by a real API server where runs go.

That is the kustomized namespace, under its policy, sent by the `launcher` account for pods of the
`job` account. What Kueue and Volcano make of a Job is judged by their real CRDs.
"""

from __future__ import annotations

import copy
import dataclasses
import secrets
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from jobs.specs import InferSpec, PromptRow, TrainSpec
from launcher import manifests, schema
from launcher.backends.apiserver import ApiServer
from launcher.devices import SERVERS
from launcher.names import longest
from launcher.plan import plan
from launcher.settings import Target

pytestmark = pytest.mark.cluster

Manifest = dict[str, Any]
INFER = InferSpec(prompts=(PromptRow(line=1, prompt="a red circle"),))
SPECS: dict[str, Any] = {
    **{method: TrainSpec(method=method) for method in ("vanilla", "lora", "lora-te")},  # type: ignore[arg-type]
    "infer": INFER,
}
QUEUES: dict[str, dict[str, str]] = {
    "none": {},
    "kueue": {"queue": "npus", "queue_engine": "kueue", "workload_priority": "urgent"},
    "volcano": {"queue": "npus", "queue_engine": "volcano"},
    "kueue-volcano": {"queue": "npus", "queue_engine": "kueue", "scheduler": "volcano"},
}
TRY = [("dryRun", "All")]
JOBS = "/apis/batch/v1/namespaces/{}/jobs"
PODS = "/api/v1/namespaces/{}/pods"


@pytest.fixture(scope="module")
def high(cluster: Any) -> Iterator[str]:
    """Return a PriorityClass: the server knows those that pods name."""
    from kubernetes import client

    name = f"test-{secrets.token_hex(4)}"
    scheduling = client.SchedulingV1Api(cluster.api())
    scheduling.create_priority_class({"metadata": {"name": name}, "value": 1})
    yield name
    scheduling.delete_priority_class(name)


@pytest.fixture(scope="module")
def server(cluster: Any, kustomized: str, tmp_path_factory: Any) -> ApiServer:
    """Return the road to the server as the kustomization's `launcher` account."""
    from kubernetes import client

    answer = client.CoreV1Api(cluster.api()).create_namespaced_service_account_token(
        "launcher", kustomized, {"spec": {"audiences": [], "expirationSeconds": 3600}}
    )
    path = cluster.kubeconfig_of(tmp_path_factory.mktemp("matrix") / "k", answer.status.token)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(path))
        return ApiServer(namespace=kustomized)


def rendered(spec: Any, where: dict[str, str], **amounts: Any) -> Manifest:
    target = Target(image="registry.example/jobs:1", store="s3://bucket/runs", store_secret="keys")
    target = dataclasses.replace(target, service_account="job", **where)  # type: ignore[arg-type]
    made = plan(spec, target, **({"name": "cat-1", "npus": 8} | amounts))
    manifest = manifests.render(made, manifests.base(spec.kind))
    schema.check(manifest)
    return manifest


def last_pod(manifest: Manifest) -> Manifest:
    """Return the pod of the last index as the Job controller makes it."""
    template = copy.deepcopy(manifest["spec"]["template"])
    name, index = manifest["metadata"]["name"], manifest["spec"]["completions"] - 1
    labels = {
        "batch.kubernetes.io/job-name": name, "job-name": name,
        "batch.kubernetes.io/job-completion-index": str(index),
    }  # fmt: skip
    template["metadata"]["labels"] |= labels
    template["metadata"]["generateName"] = f"{name}-{index}-"
    template["spec"]["hostname"] = f"{name}-{index}"
    return {"apiVersion": "v1", "kind": "Pod", **template}


def counts(kind: str) -> Iterator[tuple[int, int]]:
    """Yield NPUs and nodes: all that a server of eight gives, on one node and on several."""
    for npus, nodes in product(SERVERS["module-910b-8"].legal, (1, 2, 16)):
        if kind == "infer" or nodes == 1 or npus == 8:
            yield npus, nodes


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("method", SPECS)
def test_job_and_pod_pass_for_every_count(
    server: ApiServer, high: str, method: str, queue: str
) -> None:
    spec = SPECS[method]
    for npus, nodes in counts(spec.kind):
        for limit, priority in ((0, ""), (3600, high)):
            where = QUEUES[queue] | {"priority_class": priority}
            manifest = rendered(spec, where, npus=npus, nodes=nodes, max_seconds=limit)
            kept = server.post(JOBS.format(server.namespace), manifest, TRY)
            assert bool(kept["spec"].get("suspend")) is queue.startswith("kueue")
            assert kept["spec"].get("activeDeadlineSeconds", 0) in range(limit - 60, limit + 1)
            pod = server.post(PODS.format(server.namespace), last_pod(manifest), TRY)
            assert pod["spec"]["serviceAccountName"] == "job"
            assert pod["spec"]["hostname"] == f"cat-1-{nodes - 1}"


@pytest.mark.parametrize("plugin", ["mindcluster", "cce", "hami"])
@pytest.mark.parametrize("name", SERVERS)
def test_every_server_and_plugin_pass_on_several_nodes(
    server: ApiServer, name: str, plugin: str
) -> None:
    where = QUEUES["volcano"] | {"server": name, "plugin": plugin}
    manifest = rendered(TrainSpec(), where, npus=SERVERS[name].npus, nodes=4)
    server.post(JOBS.format(server.namespace), manifest, TRY)
    server.post(PODS.format(server.namespace), last_pod(manifest), TRY)


def test_the_judges_are_there(server: ApiServer) -> None:
    """Whatever passes above passes them, too; so each is seen to refuse something."""
    from kubernetes.client import ApiException

    manifest = rendered(TrainSpec(), QUEUES["volcano"], nodes=2)
    pods = PODS.format(server.namespace)
    foreign = last_pod(manifest)
    foreign["spec"]["volumes"].append({"name": "etc", "hostPath": {"path": "/etc"}})
    nobody = last_pod(manifest)
    nobody["spec"]["serviceAccountName"] = "nobody"
    unknown = last_pod(manifest)
    unknown["spec"]["priorityClassName"] = "unknown"
    for pod, words in ((foreign, "hostPath /etc"), (nobody, "nobody"), (unknown, "unknown")):
        with pytest.raises(ApiException, match=words):
            server.post(pods, pod, TRY)
    with pytest.raises(ApiException, match=r"spec[.]subdomian"):
        server.post(pods, {**last_pod(manifest), "spec": {"subdomian": "peers"}}, TRY)


@pytest.mark.parametrize("nodes", [2, 11])
def test_the_longest_name_of_several_nodes_is_the_servers_longest(
    server: ApiServer, nodes: int
) -> None:
    from kubernetes.client import ApiException

    manifest = rendered(TrainSpec(), {}, nodes=nodes, name="a" * longest(nodes))
    server.post(JOBS.format(server.namespace), manifest, TRY)
    server.post(PODS.format(server.namespace), last_pod(manifest), TRY)
    manifest["metadata"]["name"] += "a"
    with pytest.raises(ApiException, match="invalid DNS label"):
        server.post(JOBS.format(server.namespace), manifest, TRY)


# --- what the engines make of a Job, judged by their CRDs


def workload(job: Manifest) -> Manifest:
    """Return the Workload that Kueue makes of a Job (its concept page "workload")."""
    labels, spec = job["metadata"]["labels"], job["spec"]
    template = {
        "metadata": spec["template"]["metadata"],
        "spec": {**spec["template"]["spec"], "restartPolicy": "Never"},
    }
    pod_set = {"name": "main", "count": spec["parallelism"], "template": template}
    made: Manifest = {"podSets": [pod_set], "queueName": labels["kueue.x-k8s.io/queue-name"]}
    if limit := labels.get("kueue.x-k8s.io/max-exec-time-seconds"):
        made["maximumExecutionTimeSeconds"] = int(limit)
    if name := labels.get("kueue.x-k8s.io/priority-class"):
        group, kind = "kueue.x-k8s.io", "WorkloadPriorityClass"
        made["priorityClassRef"] = {"group": group, "kind": kind, "name": name}
        made["priority"] = 1
    metadata = {"name": f"job-{job['metadata']['name']}"}
    head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload"}
    return {**head, "metadata": metadata, "spec": made}


def pod_group(job: Manifest) -> Manifest:
    """Return the PodGroup that Volcano makes of a Job's pods (pkg/controllers/podgroup)."""
    owner = job["metadata"]["annotations"]
    pod = job["spec"]["template"]
    least = int(owner.get("scheduling.volcano.sh/group-min-member", "1"))
    requests = pod["spec"]["containers"][0]["resources"]["requests"]
    spec = {
        "minMember": least,
        "minResources": {
            "huawei.com/Ascend910": str(least * int(requests["huawei.com/Ascend910"]))
        },
        "queue": pod["metadata"]["annotations"]["scheduling.volcano.sh/queue-name"],
        "priorityClassName": pod["spec"].get("priorityClassName", ""),
    }
    kept = {key: value for key, value in owner.items() if "volcano.sh/" in key}
    metadata = {"name": f"podgroup-{job['metadata']['name']}", "annotations": kept}
    head = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "PodGroup"}
    return {**head, "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def engines(cluster: Any, crds: None, kustomized: str) -> ApiServer:
    """Return the road to the server as who an engine's controller is: it may all there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        return ApiServer(namespace=kustomized)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("method", SPECS)
def test_kueue_can_make_its_workload(engines: ApiServer, method: str, nodes: int) -> None:
    from kubernetes.client import ApiException

    where = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{engines.namespace}/workloads"
    manifest = rendered(SPECS[method], QUEUES["kueue"], nodes=nodes, max_seconds=7200)
    kept = engines.post(where, workload(manifest), TRY)["spec"]
    assert (kept["queueName"], kept["maximumExecutionTimeSeconds"]) == ("npus", 7200)
    assert kept["podSets"][0]["count"] == nodes
    assert kept["priorityClassRef"]["name"] == "urgent"
    wrong = workload(manifest)
    wrong["spec"]["queueName"] = "No Queue"
    with pytest.raises(ApiException, match=r"spec[.]queueName"):
        engines.post(where, wrong, TRY)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("method", SPECS)
def test_volcano_can_make_its_pod_group(engines: ApiServer, method: str, nodes: int) -> None:
    from kubernetes.client import ApiException

    where = f"/apis/scheduling.volcano.sh/v1beta1/namespaces/{engines.namespace}/podgroups"
    manifest = rendered(SPECS[method], QUEUES["volcano"], nodes=nodes)
    kept = engines.post(where, pod_group(manifest), TRY)["spec"]
    gang = nodes if method != "infer" else 1
    assert (kept["queue"], kept["minMember"]) == ("npus", gang)
    assert kept["minResources"] == {"huawei.com/Ascend910": str(8 * gang)}
    wrong = pod_group(manifest)
    wrong["spec"]["minMembers"] = 2
    with pytest.raises(ApiException, match="minMembers"):
        engines.post(where, wrong, TRY)
