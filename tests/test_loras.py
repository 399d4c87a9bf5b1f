"""What --lora and --model may name: pinned, checked and put into the store at submission."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from standin import launch

from jobs import commits, layout
from jobs.stores import FileStore

PAINT = ("submit", "infer", "--backend", "local", "--prompts", "p.txt")
CLUSTER = ("submit", "infer", "--image", "registry.example/jobs:1", "--prompts", "p.txt",
           "--dry-run")  # fmt: skip
Q = "unet.mid_block.attn1.to_q"


def safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return a file of zeros, fp32."""
    rows, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        rows[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(rows).encode()
    return struct.pack("<Q", len(header)) + header + bytes(end)


LORA = safetensors({f"{Q}.lora_A.weight": (2, 6), f"{Q}.lora_B.weight": (6, 2)})


@pytest.fixture
def here(place: Path) -> Path:
    (place / "p.txt").write_text("a cat\n")
    (place / "my cat.safetensors").write_bytes(LORA)
    for name, width in (("model", 6), ("other", 8)):
        (place / name / "unet").mkdir(parents=True)
        (place / name / "model_index.json").write_text("{}")
        weights = safetensors({f"{Q.removeprefix('unet.')}.weight": (width, width)})
        (place / name / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return place


def run(place: Path, name: str, *, steps: tuple[int, ...], **spec: Any) -> None:
    """Put a training run into the store, as its job leaves it there."""
    store = FileStore(place / "runs")
    document = {"spec": {"kind": "train", "method": "lora", **spec}, "attempts": 1}
    store.write(layout.key(name, layout.SPEC), json.dumps(document).encode())
    for step in steps:
        draft = place / f"draft-{name}-{step}"
        folder = draft / (layout.PIPELINE if spec.get("method") == "vanilla" else "")
        folder.mkdir(parents=True)
        (folder / ("model_index.json" if folder != draft else layout.LORA_FILE)).write_bytes(LORA)
        prefix = layout.key(name, layout.CHECKPOINTS, layout.step_name(step))
        commits.commit(store, prefix, draft)


def spec_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    if "environment" in found:
        return dict(json.loads(found["environment"]["JOB_SPEC"]))
    (container,) = found["spec"]["template"]["spec"]["containers"]
    (text,) = (row["value"] for row in container["env"] if row["name"] == "JOB_SPEC")
    return dict(json.loads(text))


def refused(done: subprocess.CompletedProcess[str], code: int, error: str, hint: str = "") -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("local: ")]
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert hint in (lines[1] if len(lines) > 1 else "")
    assert len(lines) <= 2


def test_a_file_goes_by_the_store_under_its_content(here: Path) -> None:
    paint = (*PAINT, "--lora", "my cat.safetensors:0.8", "--name", "i")
    key = f"cache/loras/{hashlib.sha256(LORA).hexdigest()}/my_cat.safetensors"
    dry = launch(here, *paint, "--dry-run")
    spec = spec_of(dry)
    assert (spec["lora"], spec["lora_weight"]) == (key, 0.8)
    assert spec.get("lora_step") is None
    assert f"not there yet: {here}/runs/{key}" in dry.stderr
    assert not (here / "runs").exists()
    assert launch(here, *paint, "--wait").returncode == 0
    assert (here / "runs" / key).read_bytes() == LORA
    refused(launch(here, *paint), 73, "run 'i'")
    assert (here / "runs" / key).read_bytes() == LORA, "it was there before"


def test_what_is_no_lora_is_refused_and_nothing_submitted(here: Path) -> None:
    (here / "junk.safetensors").write_bytes(b"<html>not found</html>")
    (here / "weights.safetensors").write_bytes(safetensors({"a.weight": (2, 2)}))
    (here / "folder").mkdir()
    for lora, code, error, hint in [
        ("no.safetensors", 66, "--lora no.safetensors: no such file", "RUN[@step]"),
        ("junk.safetensors", 78, "--lora junk.safetensors: is no whole safetensors file", ""),
        ("weights.safetensors", 78, "a.weight: is no key of a LoRA", ""),
        ("./folder", 78, "holds no pytorch_lora_weights.safetensors", "name the file"),
        (f"./{'x' * 300}.safetensors", 66, "File name too long", "RUN[@step]"),
        ("https://example.com/x.safetensors", 2, "is a web address", "fetch the file"),
        ("./x.safetensors@5", 2, "wants RUN[@step]", "cat@500:0.8"),
        ("No Such", 2, "wants RUN[@step]", "cat@500:0.8"),
    ]:
        refused(launch(here, *PAINT, "--lora", lora), code, error, hint)
    assert not (here / "runs").exists()


def test_a_lora_of_another_model_is_refused_where_the_model_is_here(here: Path) -> None:
    paint = (*PAINT, "--lora", "my cat.safetensors", "--dry-run")
    assert spec_of(launch(here, *paint, "--model", "model"))["model"] == f"{here}/model"
    told = f"{Q}.lora_A.weight [2, 6] does not fit the model's {Q} [8, 8]"
    refused(launch(here, *paint, "--model", "other"), 78, told, "another model")
    run(here, "cats", steps=(5,))
    done = launch(here, *PAINT, "--lora", "cats", "--model", "other", "--dry-run")
    refused(done, 78, f"--lora cats@5: {told}")


def test_a_run_is_pinned_on_a_cluster_too(here: Path) -> None:
    run(here, "cats", steps=(5, 9))
    run(here, "young", steps=())
    store = ("--store", f"file://{here}/runs")
    spec = spec_of(launch(here, *CLUSTER, *store, "--lora", "cats:0.5"))
    assert (spec["lora"], spec["lora_step"], spec["lora_weight"]) == ("cats", 9, 0.5)
    for lora, code, error in [
        ("dogs", 66, "--lora 'dogs': no such run"),
        ("young", 66, "--lora 'young': has no committed checkpoint yet"),
        ("cats@6", 66, "--lora cats@6: no such committed checkpoint"),
    ]:
        refused(launch(here, *CLUSTER, *store, "--lora", lora), code, error)
    away = ("--store", f"file://{here}/not-mounted")
    refused(launch(here, *CLUSTER, *away, "--lora", "cats"), 69, "not mounted here", "cats@STEP")
    done = launch(here, *CLUSTER, *away, "--lora", "cats@5")
    assert spec_of(done)["lora_step"] == 5
    assert "warning: lora cats was not looked at" in done.stderr


def test_a_lora_of_a_spec_file_is_pinned_and_the_flag_wins_whole(here: Path) -> None:
    run(here, "cats", steps=(5, 9))
    run(here, "dogs", steps=(7,))
    (here / "s.yaml").write_text("lora: cats\nlora_step: 5\nlora_weight: 0.3\n")
    dry = (*PAINT, "--dry-run", "--spec", "s.yaml")
    assert spec_of(launch(here, *dry))["lora_step"] == 5
    spec = spec_of(launch(here, *dry, "--lora", "dogs"))
    assert (spec["lora"], spec["lora_step"], spec["lora_weight"]) == ("dogs", 7, 0.3)
    assert spec_of(launch(here, *PAINT, "--dry-run", "--set", "lora=cats"))["lora_step"] == 9


def test_a_whole_fine_tune_is_a_model(here: Path) -> None:
    run(here, "whole", steps=(4, 8), method="vanilla")
    run(here, "cats", steps=(5,))
    dry = (*PAINT, "--dry-run")
    for model, step in (("whole", 8), ("whole@4", 4)):
        folder = f"{here}/runs/whole/checkpoints/step-{step:08d}/pipeline"
        assert spec_of(launch(here, *dry, "--model", model))["model"] == folder
    store = ("--store", "s3://bucket/runs", "--model", "whole@4")
    env = {"LAUNCHER_STORE_ENDPOINT": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a",
           "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}  # fmt: skip
    spec = spec_of(launch(here, *CLUSTER, *store, env=env))
    assert spec["model"] == "s3://bucket/runs/whole/checkpoints/step-00000004/pipeline"
    for flag, code, error, hint in [
        (("--model", "whole@5"), 66, "--model whole@5: no such committed checkpoint", "4, 8"),
        (("--model", "cats"), 78, "'cats': is a run of lora", "--lora cats"),
        (("--model", "nobody"), 66, "'nobody': no such folder, and no such run", "hub id"),
        (("--lora", "whole"), 78, "'whole': is a run of vanilla", "--model whole"),
    ]:
        refused(launch(here, *dry, *flag), code, error, hint)
