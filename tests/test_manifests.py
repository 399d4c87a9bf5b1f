"""Laws of rendering, the golden manifests, and what the bases promise."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.errors import FINAL, FREE
from jobs.specs import InferSpec, PromptRow, Spec, TrainSpec, parse_json
from launcher import devices, manifests
from launcher.errors import Misconfigured
from launcher.manifests import OWNED, base, render
from launcher.output import to_yaml
from launcher.plan import JobPlan, plan
from launcher.settings import Target
from launcher.sizes import grace_seconds

GOLDEN = Path(__file__).parent / "golden"
TARGET = Target(
    image="registry.example/jobs:1",
    store="s3://bucket/runs",
    namespace="art",
    store_secret="store-credentials",
    image_pull_secret="registry",
)
INFER = InferSpec(
    prompts=(
        PromptRow(line=1, prompt="a red circle"),
        PromptRow(line=3, prompt='it costs $(PRICE), "said" she: caf\u00e9 \U0001f408'),
    )
)
KINDS = ("train", "infer")


# Golden files: regenerate with UPDATE_GOLDEN=1 and read the difference


KUEUE = {"queue": "npus", "queue_engine": "kueue"}
VOLCANO = {"queue": "npus", "queue_engine": "volcano"}
Case = tuple[str, Spec, dict[str, str], dict[str, int]]


def golden_cases() -> list[Case]:
    """Return name, spec, where it goes other than TARGET, and what else `plan` takes."""
    methods: Any = ("vanilla", "lora", "lora-te")
    specs: list[tuple[str, Spec]] = [(f"train-{m}", TrainSpec(method=m)) for m in methods]
    specs.append(("infer", INFER))
    cases: list[Case] = [(f"{n}-{k}", s, {}, {"npus": k}) for n, s in specs for k in (1, 8)]
    urgent = {"priority_class": "high", "workload_priority": "urgent"}
    two, limits = {"npus": 8, "nodes": 2}, {"max_seconds": 8 * 3600, "ttl_seconds": 86400}
    return [
        *cases,
        ("train-lora-8-nodes-2", TrainSpec(), {}, two),
        ("infer-4-nodes-3", INFER, {}, {"npus": 4, "nodes": 3}),
        ("train-lora-8-nodes-2-kueue", TrainSpec(), KUEUE | urgent, two | limits),
        ("train-lora-8-nodes-2-volcano", TrainSpec(), VOLCANO | {"priority_class": "high"}, two),
        ("infer-4-nodes-3-volcano", INFER, VOLCANO, {"npus": 4, "nodes": 3}),
    ]


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case[0])
def test_the_manifest_is_the_golden_one(case: Case) -> None:
    name, spec, where, amounts = case
    target = dataclasses.replace(TARGET, **where)  # type: ignore[arg-type]
    made = plan(spec, target, name=name, **amounts)  # type: ignore[arg-type]
    text = to_yaml(render(made, base(spec.kind))).encode()
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text)
    assert path.read_bytes() == text


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == {case[0] for case in golden_cases()}


# Laws.


def kubelet(value: str, known: dict[str, str]) -> str:
    """Expand `$(NAME)` as the kubelet does (k8s.io/kubernetes third_party/forked/golang/expansion).

    `$$` is a `$`; a reference that is not known, or not closed, stays as it is.
    """
    out, at = "", 0
    while at < len(value):
        if value[at] != "$" or at + 1 == len(value):
            out, at = out + value[at], at + 1
        elif value[at + 1] == "$":
            out, at = out + "$", at + 2
        elif value[at + 1] == "(" and ")" in value[at + 2 :]:
            end = value.index(")", at + 2)
            name = value[at + 2 : end]
            out, at = out + known.get(name, f"$({name})"), end + 1
        else:
            out, at = out + value[at : at + 2], at + 2
    return out


def environment(manifest: manifests.Manifest) -> dict[str, str]:
    """Return what the container's process finds."""
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = {}
    for row in container["env"]:
        found[row["name"]] = kubelet(row["value"], found) if "value" in row else "(from a field)"
    return found


TEXTS = st.text(
    st.sampled_from("$()ab{}\"'\\\n\r\t #:-\u0085\u2028\ufeff\u00a0\u00e9\U0001f408")
    | st.characters(codec="utf-8")
)
NAMED = st.sampled_from(["$(HOME)", "$$(HOME)", "$(JOB_WORK)", "$$$(HOME)", "$(", "$"])
PROMPTS = st.lists(TEXTS | NAMED, max_size=4).map("".join)


@settings(deadline=None, max_examples=200)
@example([], "\u0085")  # PyYAML's single quotes lose it
@given(st.lists(PROMPTS, max_size=3), PROMPTS)
def test_any_text_reaches_the_container(prompts: list[str], tail: str) -> None:
    spec = TrainSpec(validation_prompts=tuple(f"p{text}" for text in prompts), model=f"m{tail}")
    store = f"s3://bucket/{tail}"
    made = plan(spec, Target(image="i", store=store), name="cat-1", npus=1)
    manifest = render(made, base("train"))
    read = yaml.safe_load(to_yaml(manifest))
    assert read == manifest
    found = environment(read)
    assert parse_json(found["JOB_SPEC"]) == spec
    assert found["JOB_STORE"] == store


PLANS = st.builds(
    lambda spec, npus, nodes, target, name, most: plan(
        spec,
        target,
        name=name,
        npus=8 if nodes > 1 and spec.kind == "train" else npus,
        nodes=nodes,
        max_seconds=most,
    ),
    st.sampled_from([TrainSpec(), TrainSpec(method="vanilla", precision="fp32"), INFER]),
    st.integers(1, 8),
    st.integers(1, 3),
    st.builds(
        Target,
        image=st.sampled_from(["a/b:1", "c@sha256:00"]),
        store=st.just("s3://bucket/runs"),
        namespace=st.sampled_from(["", "art"]),
        plugin=st.sampled_from(sorted(devices.PLUGINS)),
        resource=st.sampled_from(["", "example.com/npu"]),
        store_secret=st.sampled_from(["", "s"]),
        image_pull_secret=st.sampled_from(["", "p"]),
        scheduler=st.sampled_from(["", "volcano"]),
        queue=st.sampled_from(["", "npus"]),
        queue_engine=st.sampled_from(["kueue", "volcano"]),
        service_account=st.sampled_from(["", "runner"]),
        priority_class=st.sampled_from(["", "low"]),
        retries=st.integers(0, 9),
    ),
    st.sampled_from(["cat-1", "dog"]),
    st.sampled_from([0, 3600]),
)


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return path -> value; items of a list go by their name, where they have one."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [(r.get("name", i) if isinstance(r, dict) else i, r) for i, r in enumerate(value)]
    else:
        return {path: value}
    return {p: v for key, item in items for p, v in leaves(item, (*path, str(key))).items()}


def owned(path: tuple[str, ...]) -> bool:
    return any(path[: len(prefix)] == prefix for prefix in OWNED)


PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
THEIRS = {"weight": 1, "podAffinityTerm": {"topologyKey": "rack"}}


def foreign(kind: str) -> manifests.Manifest:
    """Return a base that an administrator has added to, in owned mappings and elsewhere."""
    made = base(kind)
    made["metadata"]["labels"]["team"] = "art"
    made["metadata"]["annotations"] = {"note": "ours"}
    made["spec"]["suspend"] = True
    pod = made["spec"]["template"]["spec"]
    pod["nodeSelector"]["disk"] = "fast"
    pod["imagePullSecrets"] = [{"name": "theirs"}]
    pod["affinity"] = {"nodeAffinity": {}, "podAntiAffinity": {PREFERRED: [THEIRS]}}
    pod["containers"].append({"name": "side", "image": "side:1"})
    main = pod["containers"][0]
    main["env"].append({"name": "GLOG_v", "value": "1"})
    main["envFrom"] = [{"configMapRef": {"name": "proxy"}}]
    main["resources"]["requests"]["hugepages-2Mi"] = "1Gi"
    return made


@settings(deadline=None, max_examples=100)
@given(made=PLANS, edited=st.booleans())
def test_render_changes_what_it_owns_and_nothing_else(made: JobPlan, edited: bool) -> None:
    source = foreign(made.kind) if edited else base(made.kind)
    untouched = copy.deepcopy(source)
    before, after = leaves(source), leaves(render(made, source))
    assert source == untouched
    changed = {
        path for path in before.keys() | after.keys()
        if path not in before or path not in after or before[path] != after[path]
    }  # fmt: skip
    assert [path for path in changed if not owned(path)] == []


@settings(deadline=None, max_examples=50)
@given(PLANS)
def test_what_an_administrator_added_to_an_owned_mapping_stays(made: JobPlan) -> None:
    manifest = render(made, foreign(made.kind))
    pod = manifest["spec"]["template"]["spec"]
    main = pod["containers"][0]
    assert manifest["metadata"]["labels"]["team"] == "art"
    assert manifest["metadata"]["annotations"]["note"] == "ours"
    assert pod["nodeSelector"]["disk"] == "fast"
    assert {"name": "theirs"} in pod["imagePullSecrets"]
    assert {"name": "GLOG_v", "value": "1"} in main["env"]
    assert {"configMapRef": {"name": "proxy"}} in main["envFrom"]
    assert main["resources"]["requests"]["hugepages-2Mi"] == "1Gi"
    assert pod["affinity"]["nodeAffinity"] == {}
    assert pod["affinity"]["podAntiAffinity"][PREFERRED][0] == THEIRS


@settings(deadline=None, max_examples=50)
@given(PLANS)
def test_a_manifest_says_what_the_plan_says(made: JobPlan) -> None:
    manifest = render(made, base(made.kind))
    pod = manifest["spec"]["template"]["spec"]
    (main,) = pod["containers"]
    assert made.environment.items() <= environment(manifest).items()
    npus = {key: value for key, value in main["resources"]["limits"].items() if "/" in key}
    assert npus == {made.resource: str(made.npus)}
    assert main["resources"]["requests"][made.resource] == str(made.npus)
    assert {k: v for k, v in pod["nodeSelector"].items() if k in devices.node_labels()} == dict(
        made.node_selector
    )
    assert manifest["spec"]["backoffLimitPerIndex"] == made.retries
    assert manifest["spec"]["completions"] == manifest["spec"]["parallelism"] == made.nodes
    assert pod["terminationGracePeriodSeconds"] == made.grace_seconds
    assert manifest["spec"].get("suspend", False) is made.suspended
    assert manifest["spec"].get("activeDeadlineSeconds", 0) == made.deadline_seconds
    metadata, of_pods = manifest["metadata"], manifest["spec"]["template"]["metadata"]
    assert metadata["labels"] == {**made.labels, **made.job_labels}
    assert of_pods["labels"] == made.labels
    assert metadata["annotations"] == {**made.annotations, **made.job_annotations}
    assert of_pods["annotations"] == {**made.annotations, **made.pod_annotations}
    names = [row["name"] for row in main["env"]]
    assert len(names) == len(set(names))


@settings(deadline=None, max_examples=50)
@given(PLANS)
def test_rendering_twice_changes_nothing_and_bytes_are_the_same(made: JobPlan) -> None:
    once = render(made, base(made.kind))
    assert render(made, once) == once
    assert to_yaml(once) == to_yaml(render(made, base(made.kind)))
    assert "&id" not in to_yaml(once)


def several(kind: str = "train", **values: Any) -> tuple[Any, Any]:
    """Return pod and container of a run over two nodes."""
    spec: Spec = TrainSpec() if kind == "train" else INFER
    source = values.pop("source", None) or base(kind)
    pod = render(plan(spec, TARGET, name="cat-1", npus=8, **({"nodes": 2} | values)), source)[
        "spec"
    ]
    assert pod["completionMode"] == "Indexed"
    return pod["template"]["spec"], pod["template"]["spec"]["containers"][0]


def test_pods_of_one_world_have_names_and_the_nodes_addresses() -> None:
    pod, main = several()
    assert pod["subdomain"] == "peers"
    (volume,) = (row for row in pod["volumes"] if row["name"] == "hccn-conf")
    assert volume["hostPath"] == {"path": "/etc/hccn.conf", "type": "File"}
    (mount,) = (row for row in main["volumeMounts"] if row["name"] == "hccn-conf")
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/hccn.conf", True)
    hccl = {row["name"] for row in main["env"] if row["name"].startswith("HCCL_")}
    assert hccl == {"HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_IF_IP"}


def test_other_pods_have_neither() -> None:
    for pod, main in (several("infer"), several(nodes=1)):
        assert "subdomain" not in pod
        assert "hccn-conf" not in {row["name"] for row in (*pod["volumes"], *main["volumeMounts"])}


def test_pods_of_several_nodes_would_rather_not_share_one() -> None:
    wanted = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": {"batch.kubernetes.io/job-name": "cat-1"}},
            "topologyKey": "kubernetes.io/hostname",
        },
    }
    for kind in KINDS:
        assert several(kind)[0]["affinity"] == {"podAntiAffinity": {PREFERRED: [wanted]}}
        assert "affinity" not in several(kind, nodes=1)[0]


def test_where_a_runtime_mounts_the_driver_no_file_of_the_node_is_mounted() -> None:
    source = base("train")
    pod = source["spec"]["template"]["spec"]
    driver = {row["name"] for row in pod["volumes"] if "hostPath" in row}
    pod["volumes"] = [row for row in pod["volumes"] if row["name"] not in driver]
    main = pod["containers"][0]
    main["volumeMounts"] = [row for row in main["volumeMounts"] if row["name"] not in driver]
    pod, main = several(source=source)
    assert not [row for row in pod["volumes"] if "hostPath" in row]
    assert "hccn-conf" not in {row["name"] for row in main["volumeMounts"]}


def test_an_anchor_in_the_base_is_not_shared() -> None:
    source = base("train")
    source["spec"]["template"]["metadata"]["labels"] = source["metadata"]["labels"]
    made = plan(TrainSpec(), TARGET, name="cat-1", npus=1)
    assert "&id" not in to_yaml(render(made, source))


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("containers", "base manifest: spec.template.spec.containers: has no item named 'main'"),
        ("volumes", "base manifest: spec.template.spec.volumes: has no item named 'shm'"),
    ],
)
def test_a_base_without_a_part_is_told_which(part: str, text: str) -> None:
    source = base("train")
    source["spec"]["template"]["spec"][part] = [{"name": "other"}]
    with pytest.raises(Misconfigured) as caught:
        render(plan(TrainSpec(), TARGET, name="cat-1", npus=1), source)
    assert caught.value.text == text


def test_a_base_of_another_shape_is_told_where() -> None:
    with pytest.raises(Misconfigured, match="base manifest: spec: is not a mapping"):
        render(plan(TrainSpec(), TARGET, name="cat-1", npus=1), {"metadata": {}, "spec": "x"})


# The bases.


@pytest.mark.parametrize("kind", KINDS)
def test_the_failure_policy_is_the_table_of_exit_codes(kind: str) -> None:
    assert base(kind)["spec"]["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "FailJob", "onExitCodes": codes(FINAL)},
        {"action": "Ignore", "onExitCodes": codes(FREE)},
    ]


def codes(values: tuple[int, ...]) -> dict[str, Any]:
    return {"containerName": "main", "operator": "In", "values": sorted(values)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_is_a_run_of_the_small_model_that_a_plan_could_have_made(kind: str) -> None:
    source = base(kind)
    found = environment(source)
    spec = parse_json(found["JOB_SPEC"])
    assert (spec.kind, spec.model) == (kind, "tiny")
    target = Target(image="localhost/jobs:dev", store=found["JOB_STORE"])
    made = plan(spec, target, name=source["metadata"]["name"], npus=1)
    assert made.environment.keys() <= found.keys()
    same = {key: found[key] for key in made.environment if key != "JOB_SPEC"}
    assert same == {k: v for k, v in made.environment.items() if k != "JOB_SPEC"}
    before, after = leaves(source), leaves(render(made, source))
    # Beside the spec's spelling, only marks of the launcher are new.
    changed = {path[-1] for path in after if before.get(path) != after[path]}
    assert changed == {"app.kubernetes.io/managed-by", "launcher/spec-sha256", "value"} | {
        "ephemeral-storage"
    }
    assert made.disk_gib <= int(source_requests(source)["ephemeral-storage"].removesuffix("Gi"))
    assert grace_seconds(spec, 100) == 60


def source_requests(source: manifests.Manifest) -> dict[str, str]:
    (main,) = source["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = main["resources"]["requests"]
    return found


def test_both_bases_are_the_same_job_but_for_what_it_does() -> None:
    train, infer = leaves(base("train")), leaves(base("infer"))
    different = {
        path[-2:] for path in train.keys() | infer.keys() if train.get(path) != infer.get(path)
    }
    assert different == {
        ("metadata", "name"),
        ("labels", "app.kubernetes.io/component"),
        ("JOB_SPEC", "value"),
        ("JOB_RUN", "value"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_base_must_never_hold(kind: str) -> None:
    source = base(kind)
    pod = source["spec"]["template"]["spec"]
    (main,) = pod["containers"]
    assert "command" not in main
    assert "livenessProbe" not in main
    assert main["securityContext"]["privileged"] is False
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert not pod.get("hostNetwork")
    assert pod["automountServiceAccountToken"] is False
    assert "LD_LIBRARY_PATH" not in environment(source)
    assert "ASCEND_VISIBLE_DEVICES" not in environment(source)
    assert "kubernetes.io/arch" not in pod["nodeSelector"]
    hosts = {v["name"]: v["hostPath"] for v in pod["volumes"] if "hostPath" in v}
    for host in hosts.values():
        assert not host["path"].startswith("/dev")
        assert host["type"] in ("File", "Directory")
    mounts = {mount["name"]: mount for mount in main["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    for name, host in hosts.items():
        assert mounts[name]["readOnly"] is True
        assert mounts[name]["mountPath"] == host["path"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_written_to_is_writable(kind: str) -> None:
    pod = base(kind)["spec"]["template"]["spec"]
    (main,) = pod["containers"]
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    writable = [m["mountPath"] for m in main["volumeMounts"] if m["name"] in empty]
    found = environment(base(kind))
    written = ("HOME", "TMPDIR", "JOB_WORK", "ASDOPS_LOG_PATH", "ASCEND_PROCESS_LOG_PATH")
    for place in (main["workingDir"], *(found[name] for name in written)):
        assert any(place == root or place.startswith(f"{root}/") for root in writable), place


def test_a_broken_base_is_told_with_its_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifests, "__file__", str(tmp_path / "manifests.py"))
    (tmp_path / "bases").mkdir()
    broken = tmp_path / "bases" / "train.yaml"
    for text in ("a: [", "\0", "- a list"):
        broken.write_text(text)
        with pytest.raises(Misconfigured) as caught:
            base("train")
        assert caught.value.text.startswith(str(broken))
        assert "\n" not in caught.value.text


def test_the_kubelets_model_knows_its_rules() -> None:
    known = {"A": "1"}
    cases = {
        "$(A)": "1", "$$(A)": "$(A)", "$$$(A)": "$1", "$(B)": "$(B)", "$A": "$A", "$": "$",
        "$(A": "$(A", "x$$y": "x$y", "$$$$": "$$",
    }  # fmt: skip
    assert {text: kubelet(text, known) for text in cases} == cases
    assert json.loads('"\\u0024"') == "$"
