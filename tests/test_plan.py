from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import layout
from jobs.access import Access
from jobs.specs import InferSpec, PromptFile, PromptRow, TrainSpec, parse_json, to_json
from launcher import inputs, sizes
from launcher.errors import LauncherError, Misconfigured, Usage
from launcher.plan import SPEC_DIGEST, JobPlan, plan
from launcher.settings import Target

CLUSTER = Target(image="registry.example/jobs:1", store="s3://bucket/runs")
LOCAL = Target(backend="local", store="./runs")
INFER = InferSpec(prompts=(PromptRow(line=1, prompt="a red circle"),))


def made(spec: Any = None, target: Target = CLUSTER, **values: Any) -> JobPlan:
    return plan(spec or TrainSpec(), target, **({"name": "cat-1", "npus": 8} | values))


def refused(spec: Any = None, target: Target = CLUSTER, **values: Any) -> LauncherError:
    with pytest.raises(LauncherError) as caught:
        made(spec, target, **values)
    assert "\n" not in caught.value.text + caught.value.hint
    assert caught.value.hint
    return caught.value


def test_the_environment_is_the_contract_with_the_supervisor() -> None:
    spec = TrainSpec(validation_prompts=("$(HOME)",))
    environment = dict(made(spec).environment)
    assert parse_json(environment.pop("JOB_SPEC")) == spec
    assert environment == {
        "JOB_RUN": "cat-1",
        "JOB_STORE": "s3://bucket/runs",
        "JOB_WORKERS": "8",
        "JOB_NODES": "1",
        "JOB_DEVICE": "Ascend",
        "JOB_STALL_SECONDS": "2700",
        "JOB_STORE_DEADLINE_SECONDS": "1800",
        "JOB_GRACE_SECONDS": "60",
        "HCCL_CONNECT_TIMEOUT": "2400",
        "HCCL_EXEC_TIMEOUT": "2400",
    }


@pytest.mark.parametrize(
    ("minutes", "hccl"), [(1, 120), (3, 160), (45, 2400), (90, 4800), (600, 7200)]
)
def test_hccl_gives_up_before_the_stall_limit_where_it_can(minutes: int, hccl: int) -> None:
    found = made(target=dataclasses.replace(CLUSTER, stall_minutes=minutes)).environment
    assert found["HCCL_CONNECT_TIMEOUT"] == found["HCCL_EXEC_TIMEOUT"] == str(hccl)
    assert hccl < int(found["JOB_STALL_SECONDS"]) or minutes < 3
    assert "HCCL_EXEC_TIMEOUT" not in made(target=LOCAL, npus=1).environment


def test_a_hub_mirror_is_handed_on() -> None:
    target = dataclasses.replace(CLUSTER, hub_endpoint="https://hub.example")
    assert made(target=target).environment["HF_ENDPOINT"] == "https://hub.example"


@pytest.mark.parametrize("target", [CLUSTER, LOCAL])
def test_how_the_store_is_spoken_to_is_handed_on_where_it_is_set(target: Target) -> None:
    plain = made(target=target, npus=1).environment
    assert not [name for name in plain if name.startswith("JOB_STORE_") and "DEADLINE" not in name]
    access = {"endpoint": "http://h:9000", "region": "r-1", "addressing": "path", "checksum": "md5"}
    values = {f"store_{key}": value for key, value in access.items()}
    found = made(target=dataclasses.replace(target, **values), npus=1).environment  # type: ignore[arg-type]
    assert {key: value for key, value in found.items() if key not in plain} == {
        "JOB_STORE_ENDPOINT": "http://h:9000",
        "JOB_STORE_REGION": "r-1",
        "JOB_STORE_ADDRESSING": "path",
        "JOB_STORE_CHECKSUM": "md5",
    }
    assert Access.read(found) == Access(**access)


def test_the_endpoint_here_is_not_the_pods() -> None:
    target = dataclasses.replace(CLUSTER, store_endpoint_here="http://localhost:9000")
    assert made(target=target) == made()


def test_a_plan_says_what_it_was_given() -> None:
    target = dataclasses.replace(
        CLUSTER,
        namespace="art",
        resource="example.com/npu",
        store_secret="keys",
        hub_secret="keys",
        image_pull_secret="pull",
        scheduler="volcano",
        service_account="runner",
        priority_class="low",
        retries=7,
        ttl_hours=2,
    )
    found = made(target=target, npus=4)
    assert (found.namespace, found.resource, found.npus) == ("art", "example.com/npu", 4)
    assert found.environment_secrets == ("keys",)
    assert found.image_pull_secrets == ("pull",)
    assert (found.scheduler, found.service_account) == ("volcano", "runner")
    assert (found.priority_class, found.retries, found.ttl_seconds) == ("low", 7, 7200)
    assert (found.cpu, found.memory_gib, found.shm_gib) == (64, 256, 16)


def test_the_digest_is_that_of_the_spec() -> None:
    digest = hashlib.sha256(to_json(TrainSpec()).encode()).hexdigest()
    assert made().annotations == {SPEC_DIGEST: digest}
    assert made(TrainSpec(seed=1)).annotations != made().annotations
    assert made(name="cat-2", npus=1).annotations == made().annotations


@pytest.mark.parametrize(("kind", "spec"), [("train", TrainSpec()), ("infer", INFER)])
def test_the_labels_find_a_run(kind: str, spec: Any) -> None:
    assert made(spec).labels == {
        "app.kubernetes.io/managed-by": "launcher",
        "app.kubernetes.io/name": "ascend-diffusion-jobs",
        "app.kubernetes.io/component": kind,
    }


def test_the_server_label_is_always_asked_for_under_mindcluster() -> None:
    assert made().node_selector == {"accelerator-type": "module-910b-8"}
    assert made(target=dataclasses.replace(CLUSTER, plugin="cce")).node_selector == {}


@pytest.mark.parametrize("key", ["image", "store"])
def test_image_and_store_must_be_known(key: str) -> None:
    error = refused(target=dataclasses.replace(CLUSTER, **{key: ""}))
    assert error.code == 78
    assert error.text.startswith(f"{key}: ")
    for way in ("launcher.toml", f"LAUNCHER_{key.upper()}", f"--{key}"):
        assert way in error.hint


@pytest.mark.parametrize("store", ["./runs", "/data/runs", "runs", "gs://bucket", "s3:/bucket"])
def test_a_store_that_no_pod_can_reach_is_refused(store: str) -> None:
    error = refused(target=dataclasses.replace(CLUSTER, store=store))
    assert error.text == f"store {store!r}: a pod has no such place"


def test_pods_of_one_world_find_the_first_by_its_name() -> None:
    found = made(nodes=3)
    assert (found.nodes, found.npus, found.subdomain) == (3, 8, "peers")
    assert found.node_file == "/etc/hccn.conf"
    assert found.environment["JOB_NODES"] == "3"
    assert found.environment["JOB_MASTER"] == "cat-1-0.peers"
    assert found.environment["JOB_MASTER_PORT"] == "8118"
    assert found.environment["JOB_RENDEZVOUS_SECONDS"] == "1800"
    patient = dataclasses.replace(CLUSTER, rendezvous_minutes=60)
    assert made(nodes=2, target=patient).environment["JOB_RENDEZVOUS_SECONDS"] == "3600"


@pytest.mark.parametrize("values", [{"spec": INFER, "nodes": 3}, {"nodes": 1}])
def test_pods_that_work_for_themselves_look_for_nobody(values: Any) -> None:
    found = made(**values)
    assert (found.subdomain, found.node_file) == ("", "")
    assert not [key for key in found.environment if key.startswith(("JOB_MASTER", "JOB_REND"))]


def test_training_over_several_nodes_takes_whole_ones_and_inference_any() -> None:
    error = refused(nodes=2, npus=4)
    assert isinstance(error, Usage)
    assert error.text == (
        "--nodes 2 --npus 4: training over several nodes takes whole ones, and server module-910b-8"
        " (Atlas 800T A2 / 900 A2 PoD) has 8 NPUs"
    )
    assert error.hint == "--nodes 1 --npus 8"
    assert made(INFER, nodes=2, npus=3).npus == 3


def test_limits_of_time_are_the_flags() -> None:
    found = made(max_seconds=600, ttl_seconds=0)
    assert (found.deadline_seconds, found.ttl_seconds) == (600, 0)
    assert (made().deadline_seconds, made().ttl_seconds) == (0, 168 * 3600)
    for values in ({"max_seconds": 1}, {"ttl_seconds": 0}):
        error = refused(target=LOCAL, npus=1, **values)
        assert error.code == 2
        assert error.text.startswith(("--max-duration: ", "--ttl: "))


def test_counts_and_names_are_checked() -> None:
    assert refused(npus=3, target=dataclasses.replace(CLUSTER, server="module")).code == 2
    assert refused(npus=16).hint == "--nodes 2 --npus 8"
    made(npus=8, nodes=2)  # so the hint is true
    assert refused(INFER, npus=12).hint == "--nodes 2 --npus 6"
    made(INFER, npus=6, nodes=2)
    assert refused(nodes=0).hint == "--nodes 1"
    assert refused(name="a" * 61, nodes=11).hint == f"--name {'a' * 60}"
    assert refused(name="Cat").hint == "--name cat"
    assert refused(target=dataclasses.replace(CLUSTER, server="x")).code == 78
    assert refused(target=dataclasses.replace(CLUSTER, plugin="x")).code == 78


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    target = dataclasses.replace(CLUSTER, memory_per_npu_gib=32)
    made(TrainSpec(), target, npus=1)
    error = refused(TrainSpec(method="vanilla"), target, npus=1)
    assert isinstance(error, Misconfigured)
    key, _, least = error.hint.partition(" = ")
    made(TrainSpec(method="vanilla"), dataclasses.replace(target, **{key: int(least)}), npus=1)


def test_the_small_model_may_be_tried_with_little_memory() -> None:
    target = dataclasses.replace(CLUSTER, memory_per_npu_gib=8)
    refused(TrainSpec(), target, npus=1)
    for npus in (1, 8):
        assert made(TrainSpec(model="tiny"), target, npus=npus).memory_gib == 8 * npus
    refused(TrainSpec(model="tiny"), dataclasses.replace(target, memory_per_npu_gib=6), npus=1)


def test_a_spec_past_the_limit_of_an_environment_string_is_refused() -> None:
    rows = tuple(PromptRow(line=line, prompt="x" * 1000) for line in range(1, 120))
    error = refused(InferSpec(prompts=rows))
    assert error.text.startswith("spec: ")
    assert error.code == 78
    made(InferSpec(prompts=rows[:90]))


def test_locally_nothing_of_a_cluster_is_needed() -> None:
    found = made(target=LOCAL, npus=2, cores=6)
    assert found.environment["JOB_DEVICE"] == "CPU"
    assert found.environment["JOB_THREADS"] == "3"
    assert found.environment["JOB_STORE"] == "./runs"
    assert made(target=LOCAL, npus=3, cores=2).environment["JOB_THREADS"] == "1"
    pinned = dataclasses.replace(LOCAL, threads=5)
    assert made(target=pinned, npus=2, cores=2).environment["JOB_THREADS"] == "5"
    assert "JOB_THREADS" not in made().environment


def test_what_a_laptop_cannot_do_is_refused() -> None:
    assert refused(TrainSpec(precision="bf16"), LOCAL, npus=1).text.startswith("--precision bf16: ")
    assert refused(target=LOCAL, nodes=2).hint == "--nodes 1"
    assert refused(target=LOCAL, npus=0).hint == "--npus 1"
    assert refused(target=LOCAL, npus=64, cores=16).hint == "--npus 16"
    made(TrainSpec(precision="bf16"))


def test_pictures_take_the_room_of_their_own_sizes() -> None:
    rows = (
        PromptRow(line=1, prompt="a"),
        PromptRow(line=2, prompt="b", width=512, height=2048, images=5),
    )
    spec = InferSpec(prompts=rows, images=2)
    assert sizes.picture_bytes(spec) == 3 * (2 * 1024 * 1024 + 5 * 512 * 2048)


def test_pictures_of_prompts_in_the_store_take_the_room_of_their_own_sizes() -> None:
    spec = InferSpec(
        prompts=PromptFile(key=layout.prompts_key("0" * 64), sha256="0" * 64), images=2
    )
    shapes = {(None, None, None): 700, (4096, None, 5): 300}
    need = 3 * (700 * 2 * 1024 * 1024 + 300 * 5 * 4096 * 1024)
    assert sizes.picture_bytes(spec, shapes) == need
    assert sizes.picture_bytes(spec) == 3 * 10_000 * 2 * 1024 * 1024
    known = made(spec, shapes=shapes).disk_gib - made(INFER).disk_gib
    assert known == pytest.approx(need / sizes.GIB, abs=1)


def test_the_sizes_of_a_large_prompt_file_are_known_at_submission(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    rows = [
        {"prompt": "x" * 200, "width": 64} if n % 4 else {"prompt": str(n)} for n in range(2000)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = inputs.read_prompts(str(path))
    assert isinstance(found.value, PromptFile)
    assert found.shapes == {(64, None, None): 1500, (None, None, None): 500}


def test_a_whole_state_is_31_gb_and_lora_small() -> None:
    whole = sizes.state_bytes(TrainSpec(method="vanilla"))
    assert whole == pytest.approx(30.8e9, rel=0.001)
    # diffusers' own LoRA file for SDXL, rank 4, fp32, is 23.4 MB with its header.
    assert 4 * sizes.trained(TrainSpec()) == pytest.approx(23.2e6, rel=0.01)
    assert sizes.state_bytes(TrainSpec(lora_rank=8)) == 2 * sizes.state_bytes(TrainSpec())
    assert sizes.state_bytes(TrainSpec(method="lora-te")) > sizes.state_bytes(TrainSpec())
    assert sizes.state_bytes(INFER) == 0
    assert sizes.model_bytes(TrainSpec()) == pytest.approx(6.94e9, rel=0.001)


def test_the_disk_holds_two_states_the_model_and_the_pictures() -> None:
    spec = TrainSpec(method="vanilla")
    need = 2 * sizes.state_bytes(spec) + sizes.model_bytes(spec) + 4 * sizes.trained(spec)
    lora = made().disk_gib * sizes.GIB - sizes.model_bytes(TrainSpec())
    assert made(spec).disk_gib * sizes.GIB - lora == pytest.approx(need, abs=2 * sizes.GIB)
    many = InferSpec(prompts=INFER.prompts, images=1000)
    assert made(many).disk_gib - made(INFER).disk_gib == pytest.approx(999 * 3 / 1024, abs=1)
    assert made(TrainSpec(model="tiny"), npus=1).disk_gib < 15


def test_the_grace_period_covers_the_upload() -> None:
    spec = TrainSpec(method="vanilla")
    slow = dataclasses.replace(CLUSTER, upload_mib_per_second=20)
    assert made(spec).grace_seconds > sizes.state_bytes(spec) / sizes.MIB / 100
    assert made(spec, slow).grace_seconds > sizes.state_bytes(spec) / sizes.MIB / 20
    assert made().grace_seconds == made(INFER).grace_seconds == 60
    assert made(spec).environment["JOB_GRACE_SECONDS"] == str(made(spec).grace_seconds)


def test_a_grace_that_the_cluster_cuts_is_capped() -> None:
    spec = TrainSpec(method="vanilla")
    spot = dataclasses.replace(CLUSTER, max_grace_seconds=240)
    assert made(spec, spot).grace_seconds == 240
    assert made(spec, spot).environment["JOB_GRACE_SECONDS"] == "240"


def test_a_local_run_has_all_the_grace_it_needs() -> None:
    spot = dataclasses.replace(LOCAL, max_grace_seconds=10)
    assert made(target=spot, npus=1).grace_seconds == 60


def test_planning_is_pure() -> None:
    assert made() == made()
    assert dataclasses.asdict(made())["name"] == "cat-1"


@pytest.mark.parametrize("npus", [1, 2, 4])
def test_painting_workers_have_one_core_each_whatever_their_number(npus: int) -> None:
    spec = InferSpec(model="tiny", precision="fp32", prompts=(PromptRow(line=1, prompt="x"),))
    local = LOCAL
    found = plan(spec, local, name="cat", npus=npus, cores=4)
    assert found.environment["JOB_THREADS"] == "1"
    train = TrainSpec(model="tiny", precision="fp32")
    shared = plan(train, local, name="cat", npus=npus, cores=4).environment["JOB_THREADS"]
    assert shared == str(4 // npus)
    chosen = plan(spec, dataclasses.replace(local, threads=3), name="cat", npus=npus, cores=4)
    assert chosen.environment["JOB_THREADS"] == "3"
