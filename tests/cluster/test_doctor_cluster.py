"""`launcher doctor` on a real cluster: each thing is made wrong for real, and told."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import cli
from launcher.backends import clusterfacts
from launcher.backends.kubernetes import Kubernetes
from launcher.doctors import clusterdoctor, doctor, objectdoctor
from launcher.doctors.findings import Answer, Facts, Wanted
from launcher.doctors.rights import granted
from launcher.errors import Misconfigured
from launcher.settings import Target

pytestmark = pytest.mark.cluster

K8S = Path(__file__).parents[2] / "k8s"
VALUE = "hunter2-is-no-key"
TYPE = {"accelerator-type": "module-910b-8"}


@dataclass(frozen=True)
class Told:
    """What doctor said."""

    code: int
    lines: dict[str, tuple[str, str, str]]
    """Check -> state, text, fix; the last where there are several."""
    order: tuple[str, ...]
    error: str
    document: dict[str, Any]

    def has(self, check: str, state: str, *words: str) -> None:
        """Assert that a check ended in a state, its text and fix with certain words in them."""
        found = self.lines[check]
        assert found[0] == state, found
        for word in words:
            assert word in f"{found[1]} {found[2]}", (word, found)
        if state == "fail":
            assert self.code not in (0, 1)
            assert found[2] or check in ("server", "pod"), "a failure without its fix"


@pytest.fixture
def ask(cluster, namespace, monkeypatch, capfd, tmp_path) -> Callable[..., Told]:
    """Return a function that runs doctor with these settings; a cluster's store is not tried."""
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "backend": "kubernetes", "namespace": namespace, "store": "file:///data/store",
        "image": "registry.example/jobs:1",
        # Nodes of other tests are none of ours.
        "resource": f"test.example/{namespace}",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LAUNCHER_{key.upper()}", value)

    def call(*flags: str, **settings: str) -> Told:
        with monkeypatch.context() as patch:
            for key, value in settings.items():
                patch.setenv(f"LAUNCHER_{key.upper()}", value)
            code = cli.main(["doctor", "--json", *flags])
        out, err = capfd.readouterr()
        assert VALUE not in out + err
        assert "Traceback" not in err
        document = json.loads(out)
        rows = document["checks"]
        wrong = [row for row in rows if row["state"] == "fail"]
        assert bool(wrong) == bool(code) == (not document["works"])
        if wrong:
            assert f"error: {wrong[0]['check']}: {wrong[0]['text']}" in err
        lines = {row["check"]: (row["state"], row["text"], row["fix"] or "") for row in rows}
        assert not [row for row in rows if "\n" in row["text"]]
        return Told(code, lines, tuple(row["check"] for row in rows), err, document)

    return call


@pytest.fixture
def npu_node(new_node, core, controllers, namespace) -> Callable[..., str]:
    """Return a function that makes a node with NPUs that are this test's alone."""
    resource = f"test.example/{namespace}"

    def make(labels: dict[str, str] | None = None, arch: str = "arm64", **values: Any) -> str:
        name = str(new_node(resource=resource, **values, **(TYPE if labels is None else labels)))
        core.patch_node_status(name, {"status": {"nodeInfo": {"architecture": arch}}})
        for _ in range(300):  # until the controllers have seen that it is ready
            taints = core.read_node(name).spec.taints or ()
            if not [row for row in taints if row.key.startswith("node.kubernetes.io/")]:
                return name
            time.sleep(0.1)
        raise AssertionError(f"{name} keeps its taints")

    return make


@pytest.fixture
def core(cluster) -> Any:
    from kubernetes import client

    return client.CoreV1Api(cluster.api())


# --- the whole


def test_where_all_is_well_every_line_says_so(ask, npu_node, kubectl, kustomized, core) -> None:
    npu_node()
    secret = {"AWS_ACCESS_KEY_ID": VALUE, "AWS_SECRET_ACCESS_KEY": VALUE}
    core.create_namespaced_secret(
        kustomized, {"metadata": {"name": "store-keys"}, "stringData": secret}
    )
    try:
        told = ask(namespace=kustomized, store_secret="store-keys", service_account="job")
    finally:
        core.delete_namespaced_secret("store-keys", kustomized)
    told.has("store", "warn", "folder of the pods", "--pod")
    assert {name for name, row in told.lines.items() if row[0] != "ok"} == {"store"}, told.lines
    assert told.code == 0
    assert told.order == (
        "context", "server", "namespace", "rights", "settings", "image", "nodes", "labels",
        "taints", "arch", "size", "free", "store keys", "account", "service", "policy", "trial",
        "store",
    )  # fmt: skip
    assert told.document["namespace"] == kustomized


def test_the_lines_are_aligned_and_a_fix_stands_below(ask, capfd) -> None:
    assert cli.main(["doctor"]) == 78
    out, err = capfd.readouterr()
    rows = [row for row in out.splitlines() if not row.startswith(" ")]
    assert {row.split()[0] for row in rows} == {"ok", "warn", "fail"}
    column = rows[1].index("https://")
    assert all(row[column - 1] == " " and row[column] != " " for row in rows)
    fixes = [row for row in out.splitlines() if row.startswith(" ")]
    assert fixes
    assert all(row[:column].isspace() and row[column:].startswith("fix: ") for row in fixes)
    assert err.splitlines()[-2].startswith("error: nodes: ")
    assert err.splitlines()[-1].startswith("hint: ")


# --- the way to the server


def test_without_a_kubeconfig_the_rest_is_looked_at(ask, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    told = ask("--pod", image="Jobs:1")
    assert told.code == 69
    told.has("context", "fail", "there is no kubeconfig", "KUBECONFIG")
    told.has("rights", "warn", "not looked at")
    told.has("image", "fail", "Jobs:1")
    told.has("store", "warn")
    told.has("pod", "warn", "see the line `context`")


def test_a_context_that_is_not_there_is_told(ask) -> None:
    told = ask("--context", "nowhere")
    assert told.code == 78
    told.has("context", "fail", "'nowhere'", "one of: ")


@pytest.mark.parametrize("token", ["expired", ""])
def test_a_server_that_does_not_answer_us_is_told(ask, cluster, monkeypatch, tmp_path, token):
    path = cluster.kubeconfig_of(tmp_path / "other", token)
    if not token:
        document = yaml.safe_load(path.read_text())
        document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
        path.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", str(path))
    told = ask()
    assert told.code == (77 if token else 69)
    told.has("context", "ok", "namespace ")
    told.has("server", "fail", "https://127.0.0.1:", "credentials" if token else "refused")
    told.has("nodes", "warn", "not looked at")
    told.has("settings", "ok")


@pytest.fixture
def facts(cluster, namespace) -> Callable[..., tuple[Facts, Wanted]]:
    def found(**values: Any) -> tuple[Facts, Wanted]:
        target = Target(image="registry.example/jobs:1", store="s3://bucket/x", **values)
        wanted = doctor._wanted(target)
        return clusterfacts.facts(Kubernetes(namespace=namespace), wanted), wanted

    return found


@pytest.mark.parametrize(
    ("version", "state"),
    [(("1", "30+"), "fail"), (("1", "31"), "ok"), (("2", "0"), "ok"), (("x", "y"), "fail")],
)
def test_an_old_server_is_told(facts, version, state) -> None:
    found, _ = facts()
    assert list(clusterdoctor.first_lines(found))[1].state == "ok"
    answer = {"major": version[0], "minor": version[1], "gitVersion": "v"}
    line = list(clusterdoctor.first_lines(replace(found, version=answer)))[1]
    assert (line.name, line.state) == ("server", state)


# --- namespace and rights


def test_a_namespace_that_is_not_there_is_told_once(ask) -> None:
    told = ask("--pod", "-n", "nowhere")
    assert told.code == 78
    told.has("namespace", "fail", "nowhere: does not exist", "kubectl apply -k k8s/")
    told.has("trial", "warn", "no namespace")
    told.has("rights", "ok")
    told.has("pod", "warn", "see the line `namespace`")


def test_a_namespace_that_ends_is_told(ask, core, namespace) -> None:
    core.patch_namespace(namespace, {"metadata": {"finalizers": ["test.example/wait"]}})
    core.delete_namespace(namespace)
    try:
        ask().has("namespace", "fail", "is being deleted")
    finally:
        core.patch_namespace(namespace, {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("level", ["baseline", "restricted", "privileged"])
def test_the_level_of_pod_security_is_held_against_the_mounts(ask, new_namespace, level) -> None:
    told = ask("-n", new_namespace(**{"pod-security.kubernetes.io/enforce": level}))
    if level == "privileged":
        told.has("namespace", "ok", level)
        told.has("trial", "ok")
        told.has("policy", "warn", "any path of the host", "kubectl apply -k k8s/")
    else:
        told.has("namespace", "fail", level, "without-driver.yaml")
        told.has("trial", "fail", "hostPath")
        told.has("policy", "ok", "Pod Security")


@pytest.fixture
def become(cluster, kustomized, monkeypatch, tmp_path) -> Callable[[str], str]:
    """Return a function by which this process becomes an account of the kustomized namespace."""
    from kubernetes import client

    def act(account: str) -> str:
        answer = client.CoreV1Api(cluster.api()).create_namespaced_service_account_token(
            account, kustomized, {"spec": {"audiences": [], "expirationSeconds": 600}}
        )
        path = cluster.kubeconfig_of(tmp_path / account, answer.status.token)
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setenv("LAUNCHER_NAMESPACE", kustomized)
        return str(kustomized)

    return act


@pytest.fixture
def without(cluster, kubectl, kustomized) -> Iterator[Callable[[str, str, str], None]]:
    """Return a function that takes a verb out of the launcher's Role."""
    from kubernetes import client

    roles = client.RbacAuthorizationV1Api(cluster.api())

    def take(group: str, resource: str, verb: str) -> None:
        rules = roles.read_namespaced_role("launcher", kustomized).rules
        for rule in rules:
            if (group, resource) == (rule.api_groups[0], rule.resources[0]):
                rule.verbs.remove(verb)
        body = cluster.api().sanitize_for_serialization([row for row in rules if row.verbs])
        roles.patch_namespaced_role("launcher", kustomized, {"rules": body})

    yield take
    kubectl("apply", "-k", K8S)


def settled(ask: Callable[[], Told], check: str, state: str) -> Told:
    """Return what doctor says once a change of roles has reached the authorizer."""
    for _ in range(50):
        told = ask()
        if told.lines[check][0] == state:
            break
    return told


def test_the_launchers_account_may_all_but_see_nodes(ask, become, kustomized) -> None:
    become("launcher")
    told = ask(store_secret="other", priority_class="high", service_account="job")
    told.has("context", "ok", f"system:serviceaccount:{kustomized}:launcher")
    told.has("rights", "warn", "list nodes", "list pods", "node-facts")
    told.has("nodes", "warn", "node-facts")
    told.has("namespace", "ok", "privileged")
    told.has("store keys", "warn", 'this user cannot get resource "secrets"', "--pod")
    # What it may not read the trial has shown.
    told.has("trial", "fail", "high")
    told.has("account", "warn", "serviceaccounts")
    told.has("priority", "warn", "priorityclasses")
    again = ask(service_account="job")
    again.has("trial", "ok")
    again.has("policy", "ok", "driver")
    again.has("account", "ok", "job: the trial's pod may run as it")
    assert again.code == 0


def test_a_verb_that_is_missing_is_named_with_what_needs_it(ask, become, without) -> None:
    become("launcher")
    without("batch", "jobs", "watch")
    told = settled(ask, "rights", "fail")
    told.has("rights", "fail", "watch jobs.batch (submit --wait", "Role launcher")
    assert told.code == 77
    without("batch", "jobs", "create")
    told = settled(ask, "trial", "fail")
    told.has("rights", "fail", "create jobs.batch")
    told.has("trial", "fail", 'cannot create resource "jobs"')


def test_what_doctor_alone_needs_is_no_failure(ask, become, without) -> None:
    become("launcher")
    without("", "namespaces", "get")
    told = settled(ask, "namespace", "warn")
    told.has("namespace", "warn", 'cannot get resource "namespaces"')
    told.has("rights", "warn", "get namespaces (doctor")
    assert told.code == 0


def test_an_account_that_may_nothing_is_told_all_of_it(ask, become) -> None:
    become("job")
    told = ask()
    assert told.code == 77
    told.has("rights", "fail", "create jobs.batch", "more")
    assert len(told.lines) == 12


def test_the_rights_are_those_of_the_role(kubectl) -> None:
    (role,) = kubectl.rendered(K8S, "Role")
    wanted = {
        (group, resource, verb)
        for rule in role["rules"]
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    found = granted("base")
    assert {(row.group, row.resource, row.verb) for row in found} == wanted
    assert all(row.purpose and not row.everywhere for row in found)
    assert all(row.everywhere for row in granted("node-facts"))


# --- settings and image


@pytest.mark.parametrize(
    ("settings", "check", "state", "word"),
    [
        ({"server": "module-x"}, "settings", "fail", "unknown server type"),
        ({"plugin": "other"}, "settings", "fail", "unknown device plugin"),
        ({"memory_per_npu_gib": "1"}, "settings", "fail", "memory_per_npu_gib 1"),
        ({"memory_per_npu_gib": "8"}, "settings", "warn", "--model tiny fits"),
        ({"queue": "npus"}, "settings", "fail", "queue_engine is not set"),
        ({"image": "Jobs:1"}, "image", "fail", "is no name of an image"),
        ({"image": "localhost/jobs:dev"}, "image", "warn", "no node can pull it"),
        ({"image": "localhost:5000/jobs:1"}, "image", "warn", "no node can pull it"),
        ({"image": "jobs:0.1.0"}, "image", "warn", "from Docker Hub"),
        ({"image": "team/jobs:0.1.0"}, "image", "warn", "from Docker Hub"),
        ({"image": "registry.example/jobs"}, "image", "warn", "names no version"),
        ({"image": "registry.example:5000/jobs"}, "image", "warn", "names no version"),
        ({"image": "registry.example/jobs:latest"}, "image", "warn", "names no version"),
        ({"image": f"registry.example/jobs@sha256:{'a' * 64}"}, "image", "ok", "@sha256"),
        ({"store": "gs://x"}, "store", "fail", "gs://x"),
        ({"store": "s3://"}, "store", "fail", "no bucket"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_and_the_rest_is_looked_at(
    ask, settings, check, state, word
) -> None:
    told = ask(**settings)
    told.has(check, state, word)
    told.has("namespace", "ok")
    told.has("trial", "ok")


def test_what_is_not_set_is_told(ask, monkeypatch) -> None:
    monkeypatch.delenv("LAUNCHER_IMAGE")
    monkeypatch.delenv("LAUNCHER_STORE")
    told = ask()
    told.has("image", "fail", "not set", "launcher.toml")
    told.has("store", "fail", "is not set", "launcher.toml")
    assert "store: is not set" not in told.lines["store"][1]


# --- nodes


def test_no_node_with_the_resource_is_told(ask, npu_node, namespace) -> None:
    told = ask()
    told.has("nodes", "fail", f"offers test.example/{namespace}", "device plugin")
    assert "labels" not in told.lines


def test_the_resource_of_another_plugin_is_named(ask, new_node) -> None:
    new_node(resource="huawei.com/ascend-1980", **TYPE)
    told = ask(resource="test.example/none")
    told.has("nodes", "fail", "huawei.com/ascend-1980", 'plugin = "cce"')


def test_a_cordoned_node_is_told(ask, npu_node, core) -> None:
    first, second = npu_node(), npu_node()
    ask().has("nodes", "ok", "2 nodes with 16")
    core.patch_node(first, {"spec": {"unschedulable": True}})
    told = ask()
    told.has("nodes", "warn", first, "1 not ready or cordoned", "uncordon")
    told.has("free", "ok", "8 of 8 NPUs")
    core.patch_node(second, {"spec": {"unschedulable": True}})
    told = ask()
    told.has("nodes", "fail", "2 not ready")
    told.has("free", "warn", "is ready")


def test_a_label_that_no_node_has_is_told(ask, npu_node, core) -> None:
    name = npu_node(labels={"accelerator-type": "module-910b-16"})
    told = ask()
    told.has("labels", "fail", "module-910b-16 (1)", 'server = "module-910b-16"')
    assert told.code == 78
    ask(server="module-910b-16").has("labels", "ok", "1 of 1 node")
    core.patch_node(name, {"metadata": {"labels": {"accelerator-type": None}}})
    ask().has("labels", "fail", "none (1)", "kubectl label node")
    npu_node()
    ask().has("labels", "warn", f"without accelerator-type: {name}", "1 of 2 nodes")


def test_a_taint_that_is_not_tolerated_is_told(ask, npu_node) -> None:
    team = {"key": "team", "value": "a", "effect": "NoSchedule"}
    npu_node(taints=[team])
    ask().has("taints", "fail", "1 of 1 node closed by team=a:NoSchedule", "tolerations")
    npu_node()
    ask().has("taints", "warn", "1 of 2 nodes")


def test_the_taints_of_ascends_own_guides_are_tolerated(ask, npu_node) -> None:
    npu_node(taints=[{"key": "huawei.com/Ascend910", "effect": "NoSchedule"}])
    ask().has("taints", "ok", "tolerated")


def test_the_architecture_is_held_against_the_images_name(ask, npu_node) -> None:
    npu_node()
    ask().has("arch", "ok", "arm64 (1)")
    ask(image="registry.example/jobs:1-aarch64").has("arch", "ok", "arm64")
    ask(image="registry.example/jobs:1-amd64").has("arch", "fail", "an image for arm64")
    npu_node(arch="amd64")
    ask().has("arch", "warn", "arm64 (1)", "amd64 (1)")
    ask(image="registry.example/jobs:1-x86_64").has("arch", "warn", "says amd64")


def test_a_run_that_no_node_is_large_enough_for_is_told(ask, npu_node) -> None:
    npu_node(npus=4, cpu=64)
    told = ask()
    told.has("size", "warn", "128 CPUs, and no node has more than 64 CPUs", "cpu_per_npu")
    assert told.code == 0
    ask(cpu_per_npu="100").has("size", "fail", "100 CPUs, and no node has more than 64")
    npu_node()
    ask().has("size", "ok", "fits on an empty node")


def place(core: Any, namespace: str, node: str, npus: int) -> None:
    """Put a pod on a node, as the scheduler would."""
    rows = {f"test.example/{namespace}": str(npus)}
    main = {"name": "main", "image": "x", "resources": {"limits": rows, "requests": rows}}
    metadata = {"generateName": "taken-"}
    core.create_namespaced_pod(
        namespace, {"metadata": metadata, "spec": {"nodeName": node, "containers": [main]}}
    )


def test_what_is_free_is_counted(ask, npu_node, core, namespace) -> None:
    first, second = npu_node(), npu_node()
    place(core, namespace, first, 5)
    ask().has("free", "ok", "11 of 16 NPUs; 8 on one node; 1 whole node")
    place(core, namespace, first, 3)
    place(core, namespace, second, 8)
    told = ask()
    told.has("free", "warn", "none of 16 NPUs")
    assert told.code == 0


def test_without_the_pods_of_all_it_is_not_known_what_is_free(
    ask, npu_node, cluster, kustomized, become, namespace
) -> None:
    from kubernetes import client

    npu_node()
    roles = client.RbacAuthorizationV1Api(cluster.api())
    name = f"nodes-{namespace}"
    rule = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}
    roles.create_cluster_role({"metadata": {"name": name}, "rules": [rule]})
    group = "rbac.authorization.k8s.io"
    roles.create_cluster_role_binding(
        {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "job", "namespace": kustomized}],
        }
    )
    try:
        become("job")
        told = settled(ask, "nodes", "ok")
        told.has("free", "warn", "not known", "node-facts")
        told.has("labels", "ok")
    finally:
        roles.delete_cluster_role_binding(name)
        roles.delete_cluster_role(name)


# --- queues


@dataclass(frozen=True)
class Custom:
    """Objects of one kind of a queue's engine, written as its controllers would."""

    api: Any
    where: tuple[str, str]
    """Group and version."""
    kind: str
    plural: str

    def write(self, name: str, namespace: str = "", status: Any = None, **fields: Any) -> None:
        """Write an object anew."""
        self.delete(name, namespace)
        body = {"apiVersion": "/".join(self.where), "kind": self.kind, "metadata": {"name": name}}
        if namespace:
            place = (*self.where, namespace, self.plural)
            self.api.create_namespaced_custom_object(*place, body | fields)
            patch = self.api.patch_namespaced_custom_object_status
        else:
            place = (*self.where, self.plural)
            self.api.create_cluster_custom_object(*place, body | fields)
            patch = self.api.patch_cluster_custom_object_status
        if status is not None:
            patch(*place, name, {"status": status})

    def delete(self, name: str, namespace: str = "") -> None:
        """Delete an object, if it is there."""
        from kubernetes.client import ApiException

        with suppress(ApiException):
            if namespace:
                place = (*self.where, namespace, self.plural, name)
                self.api.delete_namespaced_custom_object(*place)
            else:
                self.api.delete_cluster_custom_object(*self.where, self.plural, name)


@pytest.fixture
def custom(crds, cluster) -> Callable[[str, str], Custom]:
    from kubernetes import client

    api = client.CustomObjectsApi(cluster.api())
    groups = {
        "kueue": ("kueue.x-k8s.io", "v1beta2"), "volcano": ("scheduling.volcano.sh", "v1beta1"),
    }  # fmt: skip
    plural = {"LocalQueue": "localqueues", "Queue": "queues"}
    return lambda engine, kind: Custom(
        api, groups[engine], kind, plural.get(kind, "workloadpriorityclasses")
    )


def active(status: str) -> dict[str, Any]:
    row = {
        "type": "Active", "status": status, "reason": "Reason",
        "message": "clusterQueue is inactive", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return {"conditions": [row], "pendingWorkloads": 3}


KUEUE = {"queue": "npus", "queue_engine": "kueue"}


def test_kueues_queue_is_looked_at(ask, custom, namespace) -> None:
    queue, spec = custom("kueue", "LocalQueue"), {"clusterQueue": "npus"}
    told = ask(**KUEUE)
    told.has("queue", "fail", "Kueue npus: no such queue", "k8s/queues/kueue")
    assert told.code == 78
    queue.write("npus", namespace, spec=spec)
    ask(**KUEUE).has("queue", "warn", "said nothing of it yet")
    queue.write("npus", namespace, active("False"), spec=spec)
    ask(**KUEUE).has("queue", "fail", "clusterQueue is inactive", "ClusterQueue")
    queue.write("npus", namespace, active("True"), spec=spec)
    ask(**KUEUE).has("queue", "ok", "is active, 3 waiting")
    queue.write("npus", namespace, active("True"), spec=spec | {"stopPolicy": "Hold"})
    ask(**KUEUE).has("queue", "fail", "stopped (Hold)", "stopPolicy: None")


def test_kueues_priority_is_looked_at(ask, custom, namespace) -> None:
    spec = {"clusterQueue": "npus"}
    custom("kueue", "LocalQueue").write("npus", namespace, active("True"), spec=spec)
    settings = KUEUE | {"workload_priority": namespace}
    ask(**settings).has("queue", "fail", namespace, "workload_priority")
    classes = custom("kueue", "WorkloadPriorityClass")
    classes.write(namespace, value=7)
    try:
        ask(**settings).has("queue", "ok", f"{namespace}: 7")
    finally:
        classes.delete(namespace)


def test_who_may_not_see_the_queue_is_told(ask, crds, become) -> None:
    become("launcher")
    told = ask(**KUEUE)
    told.has("queue", "warn", "localqueues", "k8s/queues/kueue")
    told.has("rights", "fail", "get workloads.kueue.x-k8s.io")


def test_volcanos_queue_is_looked_at(ask, custom, namespace) -> None:
    settings = {"queue": namespace, "queue_engine": "volcano"}
    ask(**settings).has("queue", "fail", "no such queue", "k8s/queues/volcano")
    queues = custom("volcano", "Queue")
    try:
        queues.write(namespace, spec={"weight": 1})
        ask(**settings).has("queue", "warn", "said nothing of it yet")
        for state, wanted in (("Open", "ok"), ("Closing", "fail"), ("Closed", "fail")):
            queues.write(namespace, status={"state": state}, spec={"weight": 1})
            ask(**settings).has("queue", wanted, state.lower())
    finally:
        queues.delete(namespace)


@pytest.mark.parametrize("engine", ["kueue", "volcano"])
def test_an_engine_that_is_not_installed_is_told(facts, engine) -> None:
    # Its CRDs may be there by now, for other tests: the answer is put in their place.
    found, wanted = facts(queue="npus", queue_engine=engine)
    (line,) = objectdoctor.queue(replace(found, engine=Answer(), queue=Answer()), wanted)
    assert (line.state, line.error) == ("fail", Misconfigured)
    assert "is not installed, and a run would wait for ever" in line.text


# --- Secrets


KEYS = {"AWS_ACCESS_KEY_ID": VALUE, "AWS_SECRET_ACCESS_KEY": VALUE}


@pytest.mark.parametrize(
    ("data", "state", "words"),
    [
        (None, "fail", ("is not there", "create secret generic keys --from-env-file")),
        ({}, "fail", ("lacks AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (it has none)",)),
        ({"AWS_ACCESS_KEY_ID": VALUE}, "fail", ("lacks AWS_SECRET_ACCESS_KEY",)),
        (KEYS | {"AWS_SECRET_ACCESS_KEY": ""}, "fail", ("AWS_SECRET_ACCESS_KEY is empty",)),
        (KEYS | {"AWS_ACCESS_KEY_ID": f"{VALUE}\n"}, "fail", ("ends with a line break",)),
        (KEYS, "ok", ("has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",)),
    ],
)
def test_the_stores_secret_has_its_keys(ask, core, namespace, data, state, words) -> None:
    if data is not None:
        core.create_namespaced_secret(namespace, {"metadata": {"name": "keys"}, "stringData": data})
    told = ask(store="s3://bucket/x", store_endpoint="http://127.0.0.1:9", store_secret="keys")
    told.has("store keys", state, *words)
    told.has("store", "fail", "127.0.0.1:9")
    assert told.code in (69, 78)


def test_a_store_without_a_secret_is_told(ask) -> None:
    told = ask(store="s3://bucket/x", store_endpoint="http://127.0.0.1:9")
    told.has("store keys", "warn", "store_secret is not set")
    assert told.code == 69 or told.lines["nodes"][0] == "fail"


def test_the_hubs_secret_has_its_token(ask, core, namespace) -> None:
    ask(hub_secret="hub").has("hub keys", "fail", "is not there")
    data = {"HF_ENDPOINT": VALUE}
    core.create_namespaced_secret(namespace, {"metadata": {"name": "hub"}, "stringData": data})
    ask(hub_secret="hub").has("hub keys", "fail", "lacks HF_TOKEN (it has HF_ENDPOINT)")
    core.patch_namespaced_secret("hub", namespace, {"stringData": {"HF_TOKEN": VALUE}})
    ask(hub_secret="hub").has("hub keys", "ok", "HF_ENDPOINT, HF_TOKEN")


def test_the_images_secret_is_one_of_a_registry(ask, core, namespace) -> None:
    config = base64.b64encode(json.dumps({"auths": {"x": {"auth": VALUE}}}).encode()).decode()
    for name, kind in (("wrong", "Opaque"), ("right", "kubernetes.io/dockerconfigjson")):
        body = {"metadata": {"name": name}, "type": kind, "data": {".dockerconfigjson": config}}
        core.create_namespaced_secret(namespace, body)
    ask(image_pull_secret="none").has("pull keys", "fail", "is not there", "docker-registry")
    ask(image_pull_secret="wrong").has("pull keys", "fail", "type Opaque", "docker-registry")
    ask(image_pull_secret="right").has("pull keys", "ok", ".dockerconfigjson")


# --- what else the pods name


def test_an_account_that_is_not_there_is_told(ask) -> None:
    told = ask(service_account="job")
    told.has("account", "fail", "job: no such service account", "kubectl apply -k k8s/")
    told.has("trial", "fail", "service account", "job")
    told.has("policy", "warn", "another reason")


def test_a_priority_class_is_looked_for(ask, cluster, namespace) -> None:
    from kubernetes import client

    told = ask(priority_class=namespace)
    told.has("priority", "fail", f"{namespace}: no such priority class", "priority_class")
    told.has("trial", "fail", "priority class")
    classes = client.SchedulingV1Api(cluster.api())
    classes.create_priority_class({"metadata": {"name": namespace}, "value": 3})
    try:
        ask(priority_class=namespace).has("priority", "ok", f"{namespace}: 3")
    finally:
        classes.delete_priority_class(namespace)


def test_the_service_of_the_peers_is_looked_at(ask, core, namespace) -> None:
    ask().has("service", "warn", "peers: is not there", "kubectl apply -k k8s/")
    port = [{"port": 1}]
    for spec in ({"publishNotReadyAddresses": True}, {"clusterIP": "None"}):
        body = {"metadata": {"name": "peers"}, "spec": spec | {"ports": port}}
        core.create_namespaced_service(namespace, body)
        ask().has("service", "fail", "not headless, or hides")
        core.delete_namespaced_service("peers", namespace)
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "ports": port}
    core.create_namespaced_service(namespace, {"metadata": {"name": "peers"}, "spec": spec})
    ask().has("service", "ok")


def test_a_limit_that_refuses_the_pods_is_told(ask, core, namespace) -> None:
    limit = {"type": "Container", "max": {"cpu": "1"}}
    body = {"metadata": {"name": "small"}, "spec": {"limits": [limit]}}
    core.create_namespaced_limit_range(namespace, body)
    told = ask()
    told.has("trial", "fail", "cpu")
    assert told.code == 78


def test_a_quota_that_is_used_up_is_told(ask, core, namespace) -> None:
    quota = {"metadata": {"name": "npus"}, "spec": {"hard": {"requests.cpu": "1"}}}
    core.create_namespaced_resource_quota(namespace, quota)
    used = {"status": {"hard": {"requests.cpu": "1"}, "used": {"requests.cpu": "0"}}}
    core.patch_namespaced_resource_quota_status("npus", namespace, used)
    ask().has("trial", "warn", "quota npus", "kubectl describe quota")


def test_nothing_is_left_behind(ask, kubectl, namespace, npu_node) -> None:
    npu_node()
    before = kubectl("get", "all,secrets", "-n", namespace, "-o", "name")
    ask()
    assert kubectl("get", "all,secrets", "-n", namespace, "-o", "name") == before
