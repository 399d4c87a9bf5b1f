"""What a submission to a cluster is warned of, and what it is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jobs.specs import InferSpec, PromptRow, TrainSpec
from launcher import sizes
from launcher.advice import warnings
from launcher.manifests import base
from launcher.plan import plan
from launcher.settings import Target

QUIET = Target(image="registry.example/jobs:1", store="s3://bucket/runs", store_secret="keys")
INFER = InferSpec(prompts=tuple(PromptRow(line=n, prompt="a red circle") for n in range(1, 99)))


def told(spec: Any = None, target: Target = QUIET, source: Any = None, **values: Any) -> list[str]:
    spec = spec or TrainSpec()
    made = plan(spec, target, **({"name": "cat-1", "npus": 8} | values))
    found = warnings(spec, target, made, source or base(spec.kind))
    assert not [line for line in found if "\n" in line]
    return found


def where(**values: Any) -> Target:
    return dataclasses.replace(QUIET, **values)


def with_volume(name: str, path: str, **volume: Any) -> Any:
    """Return a base that an administrator has mounted something in."""
    source = base("train")
    pod = source["spec"]["template"]["spec"]
    pod["volumes"].append({"name": name, **volume})
    pod["containers"][0]["volumeMounts"].append({"name": name, "mountPath": path})
    return source


def test_a_run_without_traps_is_told_nothing() -> None:
    assert told() == told(INFER) == []
    assert told(TrainSpec(model="s3://b/m", data="owner/name")) == []
    assert told(target=where(queue="npus", queue_engine="kueue"), max_seconds=60) == []


def test_credentials_that_nothing_brings_are_told() -> None:
    (line,) = told(target=where(store_secret=""))
    assert line.startswith("store_secret: is not set")
    assert "s3://bucket/runs" in line
    source = base("train")
    main = source["spec"]["template"]["spec"]["containers"][0]
    main["envFrom"] = [{"secretRef": {"name": "ours"}}]
    assert told(target=where(store_secret=""), source=source) == []
    main["envFrom"] = [{"configMapRef": {"name": "proxy"}}]
    assert told(target=where(store_secret=""), source=source) == [line]
    main["env"].append({"name": "AWS_PROFILE", "value": "team"})
    assert told(target=where(store_secret=""), source=source) == []


@pytest.mark.parametrize("key", ["store_endpoint", "hub_endpoint"])
@pytest.mark.parametrize(
    ("address", "loops"),
    [
        ("http://localhost:9000", True), ("http://127.0.0.1:9000", True), ("http://[::1]:9", True),
        ("http://127.8.0.1", True), ("http://0.0.0.0:9000", True), ("http://s3.localhost", True),
        ("https://minio.store.svc:9000", False), ("http://10.0.0.1", False),
        ("http://localhost.example", False),
    ],
)  # fmt: skip
def test_an_address_that_is_the_pod_itself_is_told(key: str, address: str, loops: bool) -> None:
    found = told(target=where(**{key: address}))
    assert len(found) == loops
    assert all(line.startswith(f"{key} {address}: ") for line in found)
    assert told(target=where(store_endpoint_here=address)) == []


@pytest.mark.parametrize("key", ["data", "model"])
@pytest.mark.parametrize("path", ["/srv/sets/cats", "./cats", "../cats", "~/cats"])
def test_a_folder_of_this_machine_is_told(key: str, path: str) -> None:
    (line,) = told(TrainSpec(**{key: path}))  # type: ignore[arg-type]
    assert line.startswith(f"{key} {path}: the base manifest mounts no volume there")
    assert "launcher push" in line


def test_a_folder_that_the_base_mounts_is_none_of_this_machines() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "sets"}}
    source = with_volume("sets", "/srv/sets", **claim)
    assert told(TrainSpec(data="/srv/sets/cats"), source=source) == []
    assert len(told(TrainSpec(data="/srv/sets2"), source=source)) == 1
    passing = with_volume("sets", "/srv/sets", emptyDir={})
    assert len(told(TrainSpec(data="/srv/sets/cats"), source=passing)) == 1


def test_a_store_that_ends_with_the_pod_is_told() -> None:
    target = where(store="file:///srv/runs", store_secret="")
    (line,) = told(target=target)
    assert line.startswith("store /srv/runs: ")
    assert "all ends with the pod" in line
    source = with_volume("runs", "/srv", nfs={"server": "nfs", "path": "/"})
    assert told(target=target, source=source) == []
    # What the smoke run of the bases does on purpose.
    assert len(told(target=where(store="file:///scratch/store", store_secret=""))) == 1


def test_a_part_of_the_nodes_is_told_where_no_gang_is() -> None:
    gang = [line for line in told(nodes=2) if "two runs" in line]
    assert len(gang) == 1
    assert "30 minutes at most" in gang[0]
    assert "--queue" in gang[0]
    for target in (where(queue="q", queue_engine="kueue"), where(queue_engine="volcano")):
        assert not [line for line in told(target=target, nodes=2) if "two runs" in line]
    assert not [line for line in told(INFER, nodes=2) if "two runs" in line]


def test_npus_that_no_picture_is_for_are_told() -> None:
    few = INFER.model_copy(update={"prompts": INFER.prompts[:5], "batch_size": 2, "images": 2})
    idle = "10 pictures in batches of 2 keep at most 5 of 16 NPUs busy"
    assert idle in told(few, nodes=2)
    assert not [line for line in told(few, npus=4) if "busy" in line]
    assert not [line for line in told(INFER, nodes=2) if "busy" in line]


def test_an_engine_without_a_queue_is_told() -> None:
    (line,) = told(target=where(queue_engine="kueue"))
    assert "--queue NAME" in line
    assert told(target=where(queue_engine="volcano")) == [], "which has a queue of its own"


def test_a_clock_that_runs_in_the_queue_is_told() -> None:
    (line,) = told(target=where(queue="npus", queue_engine="volcano"), max_seconds=3600)
    assert line.startswith("--max-duration: counts from the create")


def test_a_stall_limit_that_compiling_may_pass_is_told() -> None:
    assert told(target=where(stall_minutes=30)) == []
    (line,) = told(target=where(stall_minutes=29))
    assert line.startswith("stall_minutes 29: ")
    assert "30 minutes" in line


def test_a_grace_that_the_cluster_cuts_is_told() -> None:
    spec = TrainSpec(method="vanilla")
    spot = where(max_grace_seconds=240)
    (line,) = told(spec, spot)
    need = sizes.grace_seconds(spec, 100)
    for word in ("max_grace_seconds 240", f"{need} s", "28.7 GiB", "100 MiB/s", "save_every"):
        assert word in line
    # The rate that it names is enough, and little less is not.
    rate = int(line.partition("a store of ")[2].split()[0])
    enough = dataclasses.replace(spot, upload_mib_per_second=rate)
    assert told(spec, enough) == []
    assert told(spec, dataclasses.replace(enough, upload_mib_per_second=rate - 20))
    (tight,) = told(spec, where(max_grace_seconds=120))  # too short for the write alone
    assert "a store of" not in tight
    (pictures,) = told(INFER, where(max_grace_seconds=30))
    assert "pictures" in pictures
    assert told(spec, where(max_grace_seconds=need)) == []
