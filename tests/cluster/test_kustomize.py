"""k8s/ as an administrator applies it, on a real API server: accounts, policy, overlay, queues."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.specs import TrainSpec
from launcher import manifests
from launcher.backends.clusterfacts import facts
from launcher.backends.following import Changes
from launcher.backends.kubernetes import Kubernetes
from launcher.backends.podlogs import Away, PodLog
from launcher.doctors.findings import Wanted
from launcher.errors import Forbidden
from launcher.plan import JobPlan, plan
from launcher.settings import Target

pytestmark = pytest.mark.cluster

K8S = Path(__file__).parents[2] / "k8s"
Manifest = dict[str, Any]
Right = tuple[str, str, str]
"""Group, resource, verb."""
ETC = {"name": "etc", "hostPath": {"path": "/etc"}}


def job(**values: Any) -> tuple[JobPlan, Manifest]:
    where = Target(
        image="registry.example/jobs:1", store="s3://bucket/runs", service_account="job", **values
    )
    made = plan(TrainSpec(), where, name=f"cat-{secrets.token_hex(4)}", npus=8)
    return made, manifests.render(made, manifests.base("train"))


def pod(manifest: Manifest) -> Any:
    return manifest["spec"]["template"]["spec"]


def with_etc() -> Manifest:
    manifest = job()[1]
    pod(manifest)["volumes"].append(ETC)
    return manifest


ADMINISTRATOR: dict[str, str] = {}


@pytest.fixture(autouse=True)
def as_administrator(cluster, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    ADMINISTRATOR["kubeconfig"] = str(cluster.kubeconfig)


@pytest.fixture
def acting_as(cluster, tmp_path, monkeypatch) -> Callable[[str, str], Any]:
    """Return a function by which this process becomes a service account; it gives its client."""
    from kubernetes import client, config

    def become(namespace: str, account: str) -> Any:
        answer = client.CoreV1Api(cluster.api()).create_namespaced_service_account_token(
            account, namespace, {"spec": {"audiences": [], "expirationSeconds": 600}}
        )
        path = cluster.kubeconfig_of(tmp_path / account, answer.status.token)
        monkeypatch.setenv("KUBECONFIG", str(path))
        return config.new_client_from_config(str(path))

    return become


@pytest.fixture(scope="module")
def own(cluster, kubectl, tmp_path_factory) -> Iterator[Callable[..., tuple[str, Path]]]:
    """Return a function that applies k8s/ by a kustomization of one's own, in another namespace."""
    place = tmp_path_factory.mktemp("own")
    shutil.copytree(K8S, place / "k8s")
    made: list[str] = []

    def apply(of: str, *components: str) -> tuple[str, Path]:
        name = f"test-{secrets.token_hex(4)}"
        (place / name).mkdir()
        (place / name / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "namespace": name,
                    "resources": [f"../{of}"],
                    "components": [f"../k8s/components/{row}" for row in components],
                }
            )
        )
        kubectl("apply", "-k", place / name)
        cluster.make_default_account(name)
        made.append(name)
        return name, place / name

    yield apply
    if cluster.lent:
        kubectl("delete", "--wait=false", "namespace", *made)
        facts = "ascend-diffusion-jobs-node-facts"
        kubectl("delete", "--ignore-not-found", "clusterrole,clusterrolebinding", facts)


@pytest.fixture(scope="module")
def restricted(own) -> tuple[str, Path]:
    return own("k8s/overlays/restricted")


def changed(output: str) -> list[str]:
    rows = output.splitlines()
    assert rows
    return [row for row in rows if not row.endswith(" unchanged")]


# --- what is applied


def test_applying_it_again_changes_nothing(kubectl, kustomized) -> None:
    assert changed(kubectl("apply", "-k", K8S)) == []


def test_applying_the_overlay_again_changes_nothing(kubectl, restricted) -> None:
    assert changed(kubectl("apply", "-k", restricted[1])) == []


@pytest.mark.parametrize("folder", ["", "overlays/restricted", "queues/kueue", "queues/volcano"])
def test_no_secret_is_applied_and_everything_has_its_namespace(kubectl, folder) -> None:
    found = kubectl.rendered(K8S / folder)
    assert "Secret" not in {row["kind"] for row in found}
    cluster_wide = {
        "Namespace", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding", "ClusterQueue", "ResourceFlavor", "Queue",
    }  # fmt: skip
    for row in found:
        wanted = None if row["kind"] in cluster_wide else "diffusion-jobs"
        assert row["metadata"].get("namespace") == wanted, row


def test_another_namespace_has_its_account_policy_and_node_facts(
    cluster, kubectl, kustomized, own
) -> None:
    name, folder = own("k8s", "node-facts")
    assert changed(kubectl("apply", "-k", folder)) == []
    assert may(cluster, name, "launcher", ("batch", "jobs", "create"))
    assert may(cluster, name, "launcher", ("", "nodes", "list"))
    assert may(cluster, "", "launcher", ("", "pods", "list"), name)
    assert not may(cluster, kustomized, "launcher", ("", "nodes", "list"))
    kubectl.wait_for_policy(name)
    with pytest.raises(Forbidden, match="hostPath /etc"):
        Kubernetes(namespace=name).dry_run_server(with_etc())
    Kubernetes(namespace=name).dry_run_server(job()[1])


def test_service_and_network_policy_select_the_pods_of_runs(kubectl) -> None:
    found = kubectl.rendered(K8S)
    (service,) = (row["spec"] for row in found if row["kind"] == "Service")
    (network,) = (row["spec"] for row in found if row["kind"] == "NetworkPolicy")
    runs = network["podSelector"]
    assert runs["matchLabels"] == service["selector"] != {}
    for manifest in (manifests.base("train"), manifests.base("infer"), job()[1]):
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert labels.items() >= runs["matchLabels"].items()
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert network["policyTypes"] == ["Ingress", "Egress"]
    assert network["ingress"] == [{"from": [{"podSelector": runs}]}]
    to_peers, *others = network["egress"]
    assert to_peers == {"to": [{"podSelector": runs}]}
    ports = {port["port"] for row in others for port in row["ports"]}
    assert ports == {53, 443, 9000}, "as the README and `doctor --pod` say"


# --- the policy


@pytest.mark.parametrize("account", ["", "launcher"])
@pytest.mark.parametrize("kind", ["train", "infer"])
def test_the_jobs_and_their_pods_pass(kustomized, acting_as, kind, account) -> None:
    if account:
        acting_as(kustomized, account)
    manifest = manifests.base(kind)
    Kubernetes(namespace=kustomized).dry_run_server(manifest)
    pod(manifest)["serviceAccountName"] = "job"
    Kubernetes(namespace=kustomized).dry_run_server(manifest)


def test_the_jobs_can_be_created_as_they_stand(kubectl, kustomized) -> None:
    for path in sorted((K8S / "jobs").glob("*.yaml")):
        kubectl("create", "--dry-run=server", "-n", kustomized, "-f", path)


def test_the_policy_lists_what_the_jobs_mount_and_no_more(kubectl) -> None:
    (policy,) = kubectl.rendered(K8S, "ValidatingAdmissionPolicy")
    (listed,) = (row for row in policy["spec"]["variables"] if row["name"] == "listed")
    where = Target(image="registry.example/jobs:1", store="s3://bucket/runs")
    made = plan(TrainSpec(), where, name="cat", npus=8, nodes=2)  # mounts one file more
    several = manifests.render(made, manifests.base("train"))
    for manifest, more in ((several, []), (manifests.base("infer"), ["File /etc/hccn.conf"])):
        mounted = [row["hostPath"] for row in pod(manifest)["volumes"] if "hostPath" in row]
        rows = [f"{row['type']} {row['path']}" for row in mounted]
        assert yaml.safe_load(listed["expression"]) == rows + more


def volume(path: str, kind: str | None = None) -> Callable[[Any, Any], None]:
    def add(pod: Any, main: Any) -> None:
        host = {"path": path} if kind is None else {"path": path, "type": kind}
        pod["volumes"].append({"name": "more", "hostPath": host})

    return add


def writable(pod: Any, main: Any) -> None:
    (mount,) = (row for row in main["volumeMounts"] if row["name"] == "dcmi")
    del mount["readOnly"]


def writable_first(pod: Any, main: Any) -> None:
    mount = {"name": "dcmi", "mountPath": "/dcmi", "readOnly": False}
    pod["initContainers"] = [{**main, "name": "first", "volumeMounts": [mount]}]


def powerful_first(pod: Any, main: Any) -> None:
    security = {"privileged": True, "allowPrivilegeEscalation": True}
    pod["initContainers"] = [{**main, "name": "first", "securityContext": security}]


def security(**values: Any) -> Callable[[Any, Any], None]:
    return lambda pod, main: main["securityContext"].update(values)


def of_pod(**values: Any) -> Callable[[Any, Any], None]:
    return lambda pod, main: pod.update(values)


LISTED = re.escape(": not among the driver's files that may be mounted here (type and path): ")
REFUSED = {
    "another path": (volume("/etc"), f"hostPath /etc{LISTED}Directory /usr/local/Ascend/driver/"),
    "a device": (volume("/dev/davinci0"), f"hostPath /dev/davinci0{LISTED}"),
    "above it": (volume("/usr/local/Ascend/driver", "Directory"), f"Ascend/driver{LISTED}"),
    "below it": (volume("/usr/local/dcmi/x", "File"), f"hostPath File /usr/local/dcmi/x{LISTED}"),
    "a slash more": (volume("/usr/local/dcmi/", "Directory"), LISTED),
    "no type": (volume("/usr/local/dcmi"), f"hostPath /usr/local/dcmi{LISTED}"),
    "made if absent": (
        volume("/usr/local/dcmi", "DirectoryOrCreate"),
        f"hostPath DirectoryOrCreate /usr/local/dcmi{LISTED}",
    ),
    "writable": (writable, "hostPath /usr/local/dcmi: must be mounted with readOnly: true"),
    "writable before": (writable_first, "hostPath /usr/local/dcmi: must be mounted with readOnly"),
    "privileged": (
        security(privileged=True, allowPrivilegeEscalation=True),
        "container main: must be neither privileged nor able to become so",
    ),
    "privileged before": (powerful_first, "container first: must be neither privileged nor"),
    "may escalate": (security(allowPrivilegeEscalation=True), "allowPrivilegeEscalation: false"),
    "capabilities": (
        security(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), "no added capabilities",
    ),
    "unmasked /proc": (security(procMount="Unmasked"), "default procMount"),
    "root": (security(runAsNonRoot=False), "container main: must have runAsNonRoot: true"),
    "the host's network": (of_pod(hostNetwork=True), "hostNetwork, hostPID and hostIPC may not"),
    "the host's processes": (of_pod(hostPID=True), "hostNetwork, hostPID and hostIPC may not"),
    "the host's memory": (of_pod(hostIPC=True), "hostNetwork, hostPID and hostIPC may not"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_pod_that_would_reach_the_host_is_refused(kustomized, acting_as, what) -> None:
    change, words = REFUSED[what]
    acting_as(kustomized, "launcher")
    manifest = job()[1]
    change(pod(manifest), pod(manifest)["containers"][0])
    if what == "unmasked /proc":  # which the server takes only with
        pod(manifest)["hostUsers"] = False
    with pytest.raises(Forbidden, match=words) as caught:
        Kubernetes(namespace=kustomized).dry_run_server(manifest)
    assert caught.value.code == 77
    assert "\n" not in caught.value.text


def test_a_container_added_later_may_not_write_either(cluster, kustomized) -> None:
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())
    manifest = job()[1]
    name = manifest["metadata"]["name"]
    core.create_namespaced_pod(kustomized, {"metadata": {"name": name}, "spec": pod(manifest)})

    def debug(mount: dict[str, Any]) -> None:
        main = pod(manifest)["containers"][0]
        added = {"name": "debug", "image": "debug", "securityContext": main["securityContext"]}
        spec = {"ephemeralContainers": [{**added, "volumeMounts": [mount]}]}
        core.patch_namespaced_pod_ephemeralcontainers(
            name, kustomized, {"spec": spec}, dry_run="All"
        )

    mount = {"name": "dcmi", "mountPath": "/dcmi"}
    debug({**mount, "readOnly": True})
    with pytest.raises(client.ApiException, match="hostPath /usr/local/dcmi: must be mounted with"):
        debug(mount)
    core.delete_namespaced_pod(name, kustomized, grace_period_seconds=0)


def test_other_namespaces_are_left_alone(kustomized, namespace) -> None:
    manifest = with_etc()
    del pod(manifest)["serviceAccountName"]
    Kubernetes(namespace=namespace).dry_run_server(manifest)


# --- the accounts


_NAMED = {"secrets": "store-keys", "services": "peers"}
"""Of these the Role means some, by name."""


def may(cluster: Any, namespace: str, account: str, right: Right, home: str = "") -> bool:
    """Return whether an account of `home` (or of the namespace itself) has a right there."""
    from kubernetes import client

    group, resource, verb = right
    resource, _, sub = resource.partition("/")
    attributes = {"group": group, "resource": resource, "subresource": sub, "verb": verb}
    if name := _NAMED.get(resource):
        attributes["name"] = name
    review = {
        "user": f"system:serviceaccount:{home or namespace}:{account}",
        "resourceAttributes": {**attributes, "namespace": namespace},
    }
    access = client.AuthorizationV1Api(cluster.api())
    return bool(access.create_subject_access_review({"spec": review}).status.allowed)


def rights(rules: list[dict[str, Any]]) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def submits(backend: Kubernetes) -> bool:
    try:
        return bool(backend.submit(*job(namespace=backend.namespace)).uid)
    except Forbidden as error:
        if 'cannot create resource "jobs"' in error.text:
            return False
        raise


def tries_the_pod(backend: Kubernetes) -> bool:
    """Return whether a Job is refused whose pods would be; the Job itself passes."""
    try:
        backend.dry_run_server(with_etc())
    except Forbidden as error:
        return "hostPath /etc" in error.text
    return False


def allowed(right: str, action: Callable[[], object]) -> bool:
    """Return whether something works that needs a right; it may fail for that alone."""
    try:
        action()
    except Forbidden as error:
        verb, resource = right.replace('"', "").split(" resource ")
        # Who is refused is told which rule is missing.
        rule = f"resources: [{resource}], verbs: [{verb}]"
        if f"cannot {right}" in error.text and rule in error.hint:
            return False
        raise
    return True


def a_job(backend: Kubernetes) -> Manifest:
    """Create a Job as the administrator does, and return it."""
    manifest = job(namespace=backend.namespace)[1]
    kubeconfig, before = ADMINISTRATOR["kubeconfig"], os.environ["KUBECONFIG"]
    os.environ["KUBECONFIG"] = kubeconfig
    try:
        api = Kubernetes(namespace=backend.namespace).api
    finally:
        os.environ["KUBECONFIG"] = before
    path = f"/apis/batch/v1/namespaces/{backend.namespace}/jobs"
    made = api.post(path, manifest)
    path = f"/api/v1/namespaces/{backend.namespace}/pods"
    query = [("labelSelector", f"batch.kubernetes.io/job-name={made['metadata']['name']}")]
    eventually(lambda: bool(api.get(path, query)["items"]))
    return dict(made)


def named(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def finds(backend: Kubernetes) -> bool:
    made = named(a_job(backend))
    return allowed('get resource "jobs"', lambda: backend.find(made))


def lists(resource: str) -> Callable[[Kubernetes], bool]:
    return lambda backend: allowed(f'list resource "{resource}"', backend.runs)


def tells_why(backend: Kubernetes) -> bool:
    made = named(a_job(backend))
    return allowed('list resource "events"', lambda: backend.snapshot(made))


def watches(resource: str) -> Callable[[Kubernetes], bool]:
    def works(backend: Kubernetes) -> bool:
        made = named(a_job(backend))
        with Changes(backend.api, made) as changes:
            return allowed(f'watch resource "{resource}"', lambda: changes.wait(10))

    return works


def cancels(resource: str) -> Callable[[Kubernetes], bool]:
    def works(backend: Kubernetes) -> bool:
        made = a_job(backend)
        return allowed(
            f'delete resource "{resource}"', lambda: backend.cancel(made, now=resource == "pods")
        )

    return works


def pod_log(backend: Kubernetes) -> PodLog:
    made = named(a_job(backend))
    return PodLog(backend.api, backend.snapshot(made).pods[0])


def answered(action: Callable[[], object]) -> bool:
    try:
        action()
    except Away as error:
        if error.refused:
            return False
        raise
    return True


def doctor_knows(what: str) -> Callable[[Kubernetes], bool]:
    def works(backend: Kubernetes) -> bool:
        _, manifest = job(namespace=backend.namespace)
        where = Target(store_secret="store-keys", namespace=backend.namespace)
        found = facts(backend, Wanted(target=where, job=manifest, room={}))
        answers = {
            "namespace": found.place, "secret": found.secrets["store-keys"], "service": found.peers
        }  # fmt: skip
        answer = answers[what]
        return "cannot get" not in answer.gap

    return works


USED: dict[Right, Callable[[Kubernetes], bool]] = {
    ("batch", "jobs", "create"): submits,
    ("batch", "jobs", "get"): finds,
    ("batch", "jobs", "list"): lists("jobs"),
    ("batch", "jobs", "watch"): watches("jobs"),
    ("batch", "jobs", "delete"): cancels("jobs"),
    ("", "pods", "create"): tries_the_pod,
    ("", "pods", "get"): lambda backend: answered(pod_log(backend).state),
    ("", "pods", "list"): lists("pods"),
    ("", "pods", "watch"): watches("pods"),
    ("", "pods", "delete"): cancels("pods"),
    ("", "pods/log", "get"): lambda backend: answered(pod_log(backend).read),
    ("", "events", "list"): tells_why,
    ("", "namespaces", "get"): doctor_knows("namespace"),
    ("", "secrets", "get"): doctor_knows("secret"),
    ("", "services", "get"): doctor_knows("service"),
}
"""What works with the right and does not without it."""


def role(kubectl: Any, folder: Path = K8S) -> dict[str, Any]:
    (found,) = (r for r in kubectl.rendered(folder, "Role"))
    return found


def test_the_launcher_has_the_rights_that_are_used_and_no_others(kubectl) -> None:
    assert rights(role(kubectl)["rules"]) == USED.keys()


def test_every_right_says_what_it_is_for() -> None:
    for path in [*K8S.rglob("rbac.yaml")]:
        block = re.compile(r"^ {4}verbs:\n((?: {6}- .*\n)+)", re.MULTILINE)
        found = block.findall(path.read_text())
        assert len(found) == path.read_text().count("verbs:") > 0
        for row in "".join(found).splitlines():
            assert re.fullmatch(r" +- [a-z]+ +# \S.*", row), f"{path}: {row}"


@pytest.mark.parametrize("right", USED, ids="-".join)
def test_without_the_right_the_verb_fails(
    cluster, kubectl, kustomized, controllers, acting_as, right
) -> None:
    from kubernetes import client

    acting_as(kustomized, "launcher")
    works = USED[right]
    backend = Kubernetes(namespace=kustomized)
    assert works(backend)
    rules = role(kubectl)["rules"]
    for rule in rules:
        if (right[0], right[1]) == (rule["apiGroups"][0], rule["resources"][0]):
            rule["verbs"].remove(right[2])
    rules = [rule for rule in rules if rule["verbs"]]
    roles = client.RbacAuthorizationV1Api(cluster.api())
    try:
        roles.patch_namespaced_role("launcher", kustomized, {"rules": rules})
        eventually(lambda: not may(cluster, kustomized, "launcher", right))
        assert not works(backend)
    finally:
        kubectl("apply", "-k", K8S)
    eventually(lambda: may(cluster, kustomized, "launcher", right))
    assert works(backend)
    # What was created would take the nodes of other tests.
    kubectl("delete", "jobs", "--all", "--wait=false", "-n", kustomized)


def test_of_the_secrets_the_launcher_sees_two_names(cluster, kustomized) -> None:
    from kubernetes import client

    access = client.AuthorizationV1Api(cluster.api())

    def may_get(name: str) -> bool:
        attributes = {"resource": "secrets", "verb": "get", "namespace": kustomized, "name": name}
        user = f"system:serviceaccount:{kustomized}:launcher"
        review = {"spec": {"user": user, "resourceAttributes": attributes}}
        return bool(access.create_subject_access_review(review).status.allowed)

    assert [name for name in ("store-keys", "hub-token", "other", "") if may_get(name)] == [
        "store-keys",
        "hub-token",
    ]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_job_account_can_do_nothing(cluster, kubectl, kustomized, acting_as) -> None:
    from kubernetes import client

    access = client.AuthorizationV1Api(acting_as(kustomized, "job"))
    answer = access.create_self_subject_rules_review({"spec": {"namespace": kustomized}}).status
    assert not answer.incomplete
    groups = {group for rule in answer.resource_rules for group in rule.api_groups}
    # What every account may: ask about itself.
    assert groups <= {"authorization.k8s.io", "authentication.k8s.io"}
    rows = {*rights(role(kubectl)["rules"]), ("", "nodes", "list"), ("*", "*", "*")}
    for group, resource, verb in rows:
        resource, _, sub = resource.partition("/")
        attributes = {"group": group, "resource": resource, "subresource": sub, "verb": verb}
        asked = {"resourceAttributes": {**attributes, "namespace": kustomized}}
        review = access.create_self_subject_access_review({"spec": asked})
        assert review.status.allowed is False, (group, resource, verb)


def test_a_pod_of_the_job_account_gets_no_token(cluster, kustomized) -> None:
    from kubernetes import client

    def volumes(account: str) -> list[Any]:
        manifest = job()[1]
        spec = {**pod(manifest), "serviceAccountName": account}
        del spec["automountServiceAccountToken"]  # the account alone must do
        made = client.CoreV1Api(cluster.api()).create_namespaced_pod(
            kustomized, {"metadata": manifest["metadata"], "spec": spec}, dry_run="All"
        )
        return [row for row in made.spec.volumes if row.projected]

    assert volumes("job") == []
    assert len(volumes("default")) == 1


# --- the overlay for nodes that mount the driver themselves


def test_restricted_refuses_the_drivers_files(restricted, acting_as) -> None:
    namespace, _ = restricted
    acting_as(namespace, "launcher")
    with pytest.raises(Forbidden, match=r'violates PodSecurity "restricted:latest": .*hostPath'):
        Kubernetes(namespace=namespace).dry_run_server(job()[1])


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_restricted_takes_the_patched_job(kubectl, restricted, acting_as, kind) -> None:
    namespace, _ = restricted
    patch = K8S / "overlays" / "restricted" / "without-driver.yaml"
    path = K8S / "jobs" / f"{kind}.yaml"
    text = kubectl("patch", "--local", "-f", path, "--patch-file", patch, "-o", "yaml")
    patched = yaml.safe_load(text)
    whole = manifests.base(kind)
    driver = {row["name"] for row in pod(whole)["volumes"] if "hostPath" in row}
    main = pod(whole)["containers"][0]
    pod(whole)["volumes"] = [r for r in pod(whole)["volumes"] if r["name"] not in driver]
    main["volumeMounts"] = [r for r in main["volumeMounts"] if r["name"] not in driver]
    assert patched == whole, "the patch takes the driver's files and nothing else"
    acting_as(namespace, "launcher")
    Kubernetes(namespace=namespace).dry_run_server(patched)


def test_restricted_has_no_room_for_a_hostpath_and_no_policy(kubectl) -> None:
    found = kubectl.rendered(K8S / "overlays" / "restricted")
    (labels,) = (row["metadata"]["labels"] for row in found if row["kind"] == "Namespace")
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert "launcher/hostpath" not in labels
    assert not [row for row in found if row["kind"].startswith("ValidatingAdmission")]
    base = kubectl.rendered(K8S)
    kinds = {(row["kind"], row["metadata"]["name"]) for row in found}
    assert {(row["kind"], row["metadata"]["name"]) for row in base} - kinds == {
        ("ValidatingAdmissionPolicy", "ascend-diffusion-jobs"),
        ("ValidatingAdmissionPolicyBinding", "ascend-diffusion-jobs"),
    }


# --- the queues


@pytest.mark.parametrize(("engine", "kinds"), [
    ("kueue", ["ClusterQueue", "LocalQueue", "ResourceFlavor"]),
    ("volcano", ["Queue"]),
])  # fmt: skip
def test_the_queues_are_what_their_crds_take(crds, kubectl, kustomized, engine, kinds) -> None:
    folder = K8S / "queues" / engine
    found = kubectl.rendered(folder)
    assert [row["kind"] for row in found if row["kind"] in kinds] == kinds
    try:
        kubectl("apply", "-k", folder)
        assert changed(kubectl("apply", "-k", folder)) == []
        for row in found:
            if row["kind"] in kinds:
                misspelt = {**row, "spec": {**row.get("spec", {}), "wieght": 1}}
                words = ("apply", "--dry-run=server", "-f", "-")
                told = kubectl.run(*words, stdin=yaml.dump(misspelt))
                assert 'unknown field "spec.wieght"' in told.stderr
    finally:
        kubectl("delete", "--wait=false", "-k", folder)


def quantity(value: object) -> int:
    from kubernetes.utils.quantity import parse_quantity

    return int(parse_quantity(value))


def test_kueues_quota_covers_all_that_two_whole_servers_ask_for(kubectl) -> None:
    found = kubectl.rendered(K8S / "queues" / "kueue")
    (queue,) = (row["spec"] for row in found if row["kind"] == "ClusterQueue")
    (group,) = queue["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {row["name"]: quantity(row["nominalQuota"]) for row in flavor["resources"]}
    assert [*quota] == group["coveredResources"]
    requests = pod(job()[1])["containers"][0]["resources"]["requests"]
    assert requests["huawei.com/Ascend910"] == "8"
    assert quota.keys() == requests.keys()
    assert all(quota[name] >= 2 * quantity(asked) for name, asked in requests.items())
    (labels,) = (row["spec"]["nodeLabels"] for row in found if row["kind"] == "ResourceFlavor")
    assert labels.items() <= pod(job()[1])["nodeSelector"].items()


def test_volcanos_queue_has_room_for_two_whole_servers(kubectl) -> None:
    (queue,) = kubectl.rendered(K8S / "queues" / "volcano", "Queue")
    requests = pod(job()[1])["containers"][0]["resources"]["requests"]
    room = queue["spec"]["capability"]
    assert all(quantity(room[name]) >= 2 * quantity(requests[name]) for name in room)
