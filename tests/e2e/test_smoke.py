"""From nothing to pictures on real nodes: the README's lines, then two pods that train as one.

What the `nodes` fixture has run is a part of it: building, pushing, installing.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import LAUNCHER, block
from running import NODES, NPUS, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

TRAIN = (
    "submit", "train", "--npus", str(NPUS), "--nodes", str(NODES), "--model", "tiny",
    "--data", "tiny", "--steps", "20", "--save-every", "10", "--set", "log_every=1",
    "--set", "validation_prompts=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def first(nodes: Any) -> str:
    """Run the README's lines of the first run; return all that they print."""
    return str(nodes.run(block("first")))


def test_the_readme_asks_for_the_values_that_its_lines_use(nodes: Any) -> None:
    assert set(re.findall(r"^(\w+)=", block("values"), re.M)) == set(nodes.values)


def test_from_zero_to_the_first_run(nodes: Any, first: str) -> None:
    assert re.search(r"^ok +pod +s3://runs/e2e from a pod on node-", first, re.M)
    assert not re.search(r"^fail ", first, re.M)
    assert re.search(r"step=160/160", first)
    assert re.search(r"^state +succeeded: its results are committed", first, re.M)


def test_what_is_fetched_is_what_the_bucket_holds(nodes: Any, first: str) -> None:
    stored = sorted((nodes.bucket / "e2e" / "first-pictures" / "images").glob("*.png"))
    fetched = nodes.home / "results" / "pictures" / "images"
    assert len(stored) >= 2
    for path in stored:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes() == (fetched / path.name).read_bytes()
    [run] = [path for path in (nodes.home / "results").iterdir() if path.name != "pictures"]
    assert [*run.glob("checkpoints/step-*160/pytorch_lora_weights.safetensors")]
    assert re.search(r"^step 160: .* verified$", nodes.launch("ckpt", "verify", run.name), re.M)


def test_runs_are_listed_and_reported(nodes: Any, first: str) -> None:
    rows = {row["run"]: row["state"] for row in json.loads(nodes.launch("list", "--json"))}
    assert rows.pop("first-pictures") == "succeeded"
    [(run, state)] = rows.items()
    assert state == "succeeded"
    for name in ("first-pictures", run):
        nodes.launch("report", name)
        assert (nodes.home / f"report-{name}" / "index.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def world(nodes: Any) -> Path:
    """Train over two nodes and follow the log; return it."""
    nodes.launch(*TRAIN, "--name", "world")
    log: Path = nodes.home / "world.log"
    with log.open("wb") as out:
        follower = subprocess.Popen(
            [LAUNCHER, "logs", "world", "-f"], cwd=nodes.home, env=nodes.environment(), stdout=out
        )
        try:
            wait_for("a step in the log", lambda: b" step=1/20" in log.read_bytes(), 1200)
            assert not (nodes.bucket / "e2e" / "world" / "result.json").exists(), "not live"
            assert follower.wait(600) == 0
        finally:
            follower.kill()
    return log


def test_two_pods_train_as_one_world_and_logs_follow(nodes: Any, world: Path) -> None:
    shown = world.read_text()
    assert "node-0 | " in shown
    assert "node-1 | " in shown
    assert "step=20/20" in shown
    assert {row["spec"]["nodeName"] for row in nodes.pods("world")} == {"node-0", "node-1"}
    found = nodes.status("world")
    assert found["state"] == "succeeded", found


def test_two_pods_paint_each_its_share_of_one_file(nodes: Any, world: Path) -> None:
    words = ("submit", "infer", "--npus", "1", "--nodes", f"{NODES}", "--model", "tiny")
    words += ("--lora", "world", "--prompts", "prompts/tiny.txt", "--steps", "2")
    nodes.launch(*words, "--set", "batch_size=1", "--name", "shares", "--wait")
    store = nodes.bucket / "e2e" / "shares"
    rows = [json.loads(line) for line in (store / "manifest.jsonl").read_text().splitlines()]
    assert {row["worker"] for row in rows} == {0, 1}
    assert {row["file"] for row in rows} == {f"images/{p.name}" for p in store.glob("images/*")}
    assert {row["spec"]["nodeName"] for row in nodes.pods("shares")} == {"node-0", "node-1"}
    assert json.loads((store / "result.json").read_text())["pictures"] == len(rows) >= 2
