"""Rendered Jobs and the Kubernetes backend against a real API server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobs.specs import InferSpec, PromptRow, TrainSpec, parse_json
from launcher import manifests, output
from launcher.backends.kubernetes import Kubernetes
from launcher.devices import SERVERS
from launcher.errors import Forbidden, LauncherError, Misconfigured, NameTaken
from launcher.names import longest
from launcher.plan import JobPlan, plan
from launcher.settings import Target

pytestmark = pytest.mark.cluster

METHODS = ("vanilla", "lora", "lora-te")
PRECISIONS = ("fp16", "bf16", "fp32")
INFER = InferSpec(prompts=(PromptRow(line=1, prompt="a red circle"),))


def target(**values: Any) -> Target:
    return Target(image="registry.example/jobs:1", store="s3://bucket/runs", **values)


def job(namespace: str, name: str = "cat-1", **values: Any) -> tuple[JobPlan, manifests.Manifest]:
    made = plan(TrainSpec(), target(namespace=namespace, **values), name=name, npus=1)
    return made, manifests.render(made, manifests.base("train"))


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_the_bases_can_be_created_as_they_stand(namespace: str, kind: str) -> None:
    Kubernetes(namespace=namespace).dry_run_server(manifests.base(kind))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", [*METHODS, "infer"])
def test_job_and_pod_pass_for_every_count(namespace: str, method: str, precision: str) -> None:
    if method == "infer":
        spec: Any = INFER.model_copy(update={"precision": precision})
    else:
        spec = TrainSpec(method=method, precision=precision)  # type: ignore[arg-type]
    backend = Kubernetes(namespace=namespace)
    for npus in SERVERS["module-910b-8"].legal:
        made = plan(spec, target(), name=f"{method}-{npus}", npus=npus)
        backend.dry_run_server(manifests.render(made, manifests.base(spec.kind)))


@pytest.mark.parametrize("plugin", ["mindcluster", "cce", "hami"])
@pytest.mark.parametrize("server", SERVERS)
def test_job_and_pod_pass_for_every_server_and_plugin(
    namespace: str, server: str, plugin: str
) -> None:
    where = target(server=server, plugin=plugin)
    made = plan(TrainSpec(), where, name="cat-1", npus=SERVERS[server].npus)
    manifest = manifests.render(made, manifests.base("train"))
    Kubernetes(namespace=namespace).dry_run_server(manifest)


def test_every_option_passes(namespace: str, cluster: Any, crds: None) -> None:
    from kubernetes import client

    api = cluster.api()
    client.CoreV1Api(api).create_namespaced_service_account(
        namespace, {"metadata": {"name": "runner"}}
    )
    client.SchedulingV1Api(api).create_priority_class(
        {"metadata": {"name": namespace}, "value": 1, "preemptionPolicy": "Never"}
    )
    _, manifest = job(
        namespace,
        image_pull_secret="pull",
        store_secret="store",
        hub_secret="hub",
        scheduler="volcano",
        service_account="runner",
        priority_class=namespace,
    )
    try:
        Kubernetes().dry_run_server(manifest)
    finally:
        client.SchedulingV1Api(api).delete_priority_class(namespace)


def lost(sent: Any, kept: Any, path: str = "") -> list[str]:
    """Return the paths of what was sent and is not in what the server kept."""
    if isinstance(sent, dict):
        return [p for k, v in sent.items() for p in lost(v, (kept or {}).get(k), f"{path}.{k}")]
    if isinstance(sent, list):
        rows = zip(sent, kept or [None] * len(sent), strict=True)
        return [p for i, (s, k) in enumerate(rows) for p in lost(s, k, f"{path}[{i}]")]
    return [] if sent == kept else [f"{path}: {sent!r} became {kept!r}"]


def test_submit_creates_the_job_that_was_rendered(namespace: str, cluster: Any) -> None:
    from kubernetes import client

    made, manifest = job(namespace)
    submitted = Kubernetes().submit(made, manifest)
    api = cluster.api()
    found = client.BatchV1Api(api).read_namespaced_job("cat-1", namespace)
    assert (submitted.name, submitted.namespace) == ("cat-1", namespace)
    assert found.metadata.uid == submitted.uid
    kept = api.sanitize_for_serialization(found)
    # The server writes quantities in its own way; all else is kept as it was sent.
    assert [row for row in lost(manifest, kept) if "resources" not in row] == []


def test_the_namespace_of_the_flag_wins_over_the_contexts(namespace: str) -> None:
    made, manifest = job("")
    assert Kubernetes(namespace=namespace).submit(made, manifest).namespace == namespace


def test_a_name_is_given_once(namespace: str) -> None:
    made, manifest = job(namespace)
    Kubernetes().submit(made, manifest)
    with pytest.raises(NameTaken) as caught:
        Kubernetes().submit(made, manifest)
    assert caught.value.text == "run 'cat-1': exists"
    assert caught.value.code == 73


def test_of_many_at_once_one_wins(namespace: str) -> None:
    made, manifest = job(namespace)

    def submit(backend: Kubernetes) -> str:
        try:
            return backend.submit(made, manifest).uid
        except NameTaken:
            return ""

    backends = [Kubernetes() for _ in range(6)]
    with ThreadPoolExecutor(len(backends)) as pool:
        won = [uid for uid in pool.map(submit, backends) if uid]
    assert len(won) == 1


def test_the_longest_name_is_the_servers_longest(namespace: str) -> None:
    backend = Kubernetes()
    _, fits = job(namespace, "a" * longest(1))
    backend.dry_run_server(fits)
    fits["metadata"]["name"] += "a"
    with pytest.raises(Misconfigured, match="invalid DNS label"):
        backend.dry_run_server(fits)


NASTY = (
    "a $(HOME) and $$(HOME) $JOB_RUN ${x} $",
    "quote ' \" ''' \\ \\n # : - [x] {y} & * ! | > % @ `",
    " leading, trailing and\ttab\nnewline \r\u0085\u2028\ufeff\u00a0",
    "~",
    "yes",
    "0x1f",
    "\u4e2d\u6587 \U0001f408 \u0000\u001b[31m\x7f",
)


def test_any_prompt_survives_yaml_and_the_server(namespace: str, cluster: Any) -> None:
    made = plan(
        TrainSpec(validation_prompts=NASTY), target(namespace=namespace), name="cat-1", npus=1
    )
    text = output.to_yaml(manifests.render(made, manifests.base("train")))
    api = cluster.api()
    request = api.param_serialize(
        "POST",
        f"/apis/batch/v1/namespaces/{namespace}/jobs?fieldValidation=Strict",
        header_params={"Content-Type": "application/yaml", "Accept": "application/json"},
        body=text,
        auth_settings=["BearerToken"],
    )
    answer = api.call_api(*request)
    assert answer.status == 201, answer.read()
    from kubernetes import client

    found = client.BatchV1Api(api).read_namespaced_job("cat-1", namespace)
    env = {row.name: row.value for row in found.spec.template.spec.containers[0].env}
    spec = parse_json(env["JOB_SPEC"])
    assert isinstance(spec, TrainSpec)
    assert spec.validation_prompts == NASTY


def test_a_namespace_that_does_not_exist_is_named(namespace: str) -> None:
    made, manifest = job(f"{namespace}-x")
    with pytest.raises(Misconfigured) as caught:
        Kubernetes().submit(made, manifest)
    assert caught.value.text == f'namespace: namespaces "{namespace}-x" not found'


def test_a_manifest_the_server_refuses_is_told_in_its_words(namespace: str) -> None:
    made, manifest = job(namespace)
    manifest["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    with pytest.raises(Misconfigured) as caught:
        Kubernetes().submit(made, manifest)
    assert "spec.template.spec.restartPolicy" in caught.value.text
    manifest["spec"]["backofLimit"] = 3
    with pytest.raises(Misconfigured, match=r'unknown field "spec[.]backofLimit"'):
        Kubernetes().submit(made, manifest)


def user(cluster: Any, namespace: str, *rules: dict[str, Any]) -> str:
    """Make a user who may do what `rules` say, here; return their token."""
    from kubernetes import client

    api = cluster.api()
    client.CoreV1Api(api).create_namespaced_service_account(
        namespace, {"metadata": {"name": "user"}}
    )
    access = client.RbacAuthorizationV1Api(api)
    access.create_namespaced_role(namespace, {"metadata": {"name": "user"}, "rules": list(rules)})
    access.create_namespaced_role_binding(
        namespace,
        {
            "metadata": {"name": "user"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user"},
            "subjects": [{"kind": "ServiceAccount", "name": "user", "namespace": namespace}],
        },
    )
    answer = client.CoreV1Api(api).create_namespaced_service_account_token(
        "user", namespace, {"spec": {"audiences": [], "expirationSeconds": 600}}
    )
    return str(answer.status.token)


def test_a_user_without_rights_is_told_which(cluster, namespace, tmp_path, monkeypatch) -> None:
    token = user(cluster, namespace)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "k", token)))
    made, manifest = job(namespace)
    with pytest.raises(Forbidden) as caught:
        Kubernetes().submit(made, manifest)
    assert 'cannot create resource "jobs"' in caught.value.text
    assert "\n" not in caught.value.text
    assert caught.value.code == 77


def test_the_right_to_create_jobs_is_enough(cluster, namespace, tmp_path, monkeypatch) -> None:
    rule = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}
    token = user(cluster, namespace, rule)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "k", token)))
    made, manifest = job(namespace)
    assert Kubernetes().submit(made, manifest).uid


def test_credentials_that_are_not_accepted(cluster, namespace, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(tmp_path / "k", "stale")))
    made, manifest = job(namespace)
    with pytest.raises(Forbidden, match="does not accept the credentials"):
        Kubernetes().submit(made, manifest)


def absent(cluster: Any, namespace: str) -> bool:
    from kubernetes import client

    return not client.BatchV1Api(cluster.api()).list_namespaced_job(namespace).items


def test_a_job_whose_pods_are_refused_is_refused(cluster, new_namespace, monkeypatch) -> None:
    """Pod Security `baseline` refuses hostPath volumes, so runs need a namespace without it."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    strict = new_namespace(**{"pod-security.kubernetes.io/enforce": "baseline"})
    made, manifest = job(strict)
    with pytest.raises(Forbidden) as caught:
        Kubernetes().submit(made, manifest)
    assert 'violates PodSecurity "baseline:latest": hostPath volumes' in caught.value.text
    assert absent(cluster, strict)


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_the_drivers_files_are_all_that_restricted_refuses(
    cluster, new_namespace, monkeypatch, kind
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    strict = new_namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    manifest = manifests.base(kind)
    pod = manifest["spec"]["template"]["spec"]
    driver = {volume["name"] for volume in pod["volumes"] if "hostPath" in volume}
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] not in driver]
    container = pod["containers"][0]
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] not in driver]
    Kubernetes(namespace=strict).dry_run_server(manifest)


def test_a_full_quota_makes_a_job_wait_and_does_not_refuse_it(cluster, namespace) -> None:
    from kubernetes import client

    core = client.CoreV1Api(cluster.api())
    hard = {"requests.huawei.com/Ascend910": "0"}
    core.create_namespaced_resource_quota(
        namespace, {"metadata": {"name": "npus"}, "spec": {"hard": hard}}
    )
    # The controller manager would fill in the status; there may be none.
    core.patch_namespaced_resource_quota_status(
        "npus", namespace, {"status": {"hard": hard, "used": hard}}
    )
    made, manifest = job(namespace)
    assert Kubernetes().submit(made, manifest).uid


def test_a_service_account_that_does_not_exist_refuses_the_job(cluster, namespace) -> None:
    made, manifest = job(namespace, service_account="nobody")
    with pytest.raises(LauncherError, match="service account nobody does not exist"):
        Kubernetes().submit(made, manifest)
    assert absent(cluster, namespace)
