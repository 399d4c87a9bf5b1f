"""From nothing to pictures on real nodes: the image, two pods that train as one world, infer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import NODES, NPUS

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

TRAIN = (
    "submit", "train", "--npus", str(NPUS), "--nodes", str(NODES), "--model", "tiny",
    "--data", "tiny", "--set", "precision=fp32", "--set", "resolution=128", "--set", "steps=20",
    "--set", "save_every=10", "--set", "validation_prompts=[]", "--set", "log_every=1",
)  # fmt: skip


def test_the_cluster_is_fit_for_runs_of_this_size(nodes: Any) -> None:
    found = json.loads(nodes.launch("doctor", "--pod", "--json", code=78))
    wrong = {row["check"]: row["text"] for row in found["checks"] if row["state"] == "fail"}
    assert wrong.keys() == {"settings"}, wrong  # enough memory for the tiny model, not for SDXL
    assert "memory_per_npu_gib 13: " in wrong["settings"]


@pytest.fixture(scope="module")
def trained(nodes: Any) -> Any:
    nodes.submit("smoke", *TRAIN)
    return nodes


def test_two_pods_train_as_one_world_and_logs_follow(trained: Any) -> None:
    shown = trained.launch("logs", "smoke", "-f", seconds=900)
    assert "node-0 | " in shown
    assert "node-1 | " in shown
    assert "step=20/20" in shown
    assert {row["spec"]["nodeName"] for row in trained.pods("smoke")} == {"node-0", "node-1"}
    found = trained.status("smoke")
    assert found["state"] == "succeeded", found


def test_pictures_are_painted_with_what_was_trained(trained: Any) -> None:
    (trained.home / "prompts.txt").write_text("a red circle\na blue square\n")
    words = ("submit", "infer", "--model", "tiny", "--lora", "smoke", "--prompts", "prompts.txt")
    words += ("--npus", "1", "--set", "precision=fp32", "--name", "paint", "--wait")
    trained.launch(*words, "--set", "width=128", "--set", "height=128", "--set", "steps=2",
                   seconds=900)  # fmt: skip
    trained.launch("fetch", "paint", "here")
    pictures = sorted(trained.home.glob("here/**/*.png"))
    assert len(pictures) >= 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_what_was_committed_is_verified_and_told(trained: Any) -> None:
    assert "step-00000020" in trained.launch("ckpt", "verify", "smoke")
    trained.launch("report", "smoke", "paint")
    rows = trained.launch("list", "--json")
    assert {"smoke", "paint"} <= {row["name"] for row in json.loads(rows)}
