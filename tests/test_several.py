"""The flags for several nodes, queues and limits, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import cli

TRAIN = ("submit", "train", "--image", "a/b:1", "--store", "s3://b/r", "--dry-run", "--name", "x")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_STORE_SECRET", "keys")


def launch(capfd: Any, *words: str) -> tuple[int, str, list[str]]:
    code = cli.main(words)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    told = [row for row in err.splitlines() if not row.startswith("graphs to compile: ")]
    return code, out, told


@pytest.mark.parametrize(
    ("words", "code", "told", "hint"),
    [
        (["--npus", "16"], 2, "--npus 16: ", "--nodes 2 --npus 8"),
        (["--nodes", "2"], 2, "--nodes 2 --npus 1: ", "--nodes 1 --npus 2"),
        (["--nodes", "2", "--npus", "4"], 2, "takes whole ones", "--nodes 1 --npus 8"),
        (["--nodes", "0"], 2, "--nodes 0: ", "--nodes 1"),
        (["--queue", "q"], 78, "queue 'q': queue_engine is not set", "--queue-engine"),
        (["--queue", "Q q", "--queue-engine", "kueue"], 78, "'Q q' is no name", "lower case"),
        (["--priority", "High!"], 78, "priority_class: 'High!' is no name", "lower case"),
        (["--queue-engine", "slurm"], 2, "'slurm' is not one of", "--help"),
        (["--max-duration", "8"], 2, "--max-duration '8': is no duration", "8h"),
        (["--max-duration", "0"], 2, "--max-duration '0': is too short", "8h"),
        (["--ttl", "soon"], 2, "--ttl 'soon': is no duration", "7d"),
        (["--backend", "local", "--ttl", "1d"], 2, "--ttl: ", "leave --ttl out"),
        (["--backend", "local", "--max-duration", "1d"], 2, "--max-duration: ", "leave"),
        (["--backend", "local", "--nodes", "2"], 2, "--nodes 2: ", "--nodes 1"),
    ],
)
def test_bad_input_is_one_line_with_its_code(capfd, words, code, told, hint) -> None:
    found, out, err = launch(capfd, *TRAIN, *words)
    assert (found, out) == (code, "")
    error, way = [row for row in err if not row.startswith("local: ")]
    assert error.startswith("error: ")
    assert told in error
    assert way.startswith("hint: ")
    assert hint in way


def test_the_hint_for_too_many_npus_is_true(capfd) -> None:
    _, _, err = launch(capfd, *TRAIN, "--npus", "16")
    flags = err[-1].removeprefix("hint: ").split()
    code, out, _ = launch(capfd, *TRAIN, *flags)
    spec = yaml.safe_load(out)["spec"]
    assert (code, spec["completions"], spec["parallelism"]) == (0, 2, 2)


def test_the_cluster_says_the_queue_and_a_flag_wins(capfd, monkeypatch, tmp_path) -> None:
    (tmp_path / "launcher.toml").write_text('queue = "npus"\nqueue_engine = "kueue"\n')
    monkeypatch.setenv("LAUNCHER_PRIORITY_CLASS", "low")
    limits = ("--max-duration", "1h", "--ttl", "0")
    code, out, err = launch(capfd, *TRAIN, "--queue", "night", *limits)
    assert (code, err) == (0, [])
    job = yaml.safe_load(out)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    assert job["spec"]["suspend"] is True
    assert job["spec"]["ttlSecondsAfterFinished"] == 0
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "low"
    _, out, _ = launch(capfd, "config", "--json")
    found = json.loads(out)["target"]
    where = str(tmp_path / "launcher.toml")
    assert found["queue"] == {"value": "npus", "from": where}
    assert found["priority_class"] == {"value": "low", "from": "LAUNCHER_PRIORITY_CLASS"}
    keys = {"queue", "queue_engine", "priority_class", "workload_priority", "rendezvous_minutes"}
    assert keys <= found.keys()


def test_what_seldom_works_is_told_and_the_job_printed(capfd, monkeypatch) -> None:
    monkeypatch.delenv("LAUNCHER_STORE_SECRET")
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", "http://localhost:9000")
    code, out, err = launch(capfd, *TRAIN, "--npus", "8", "--nodes", "2", "--data", "/srv/cats")
    assert code == 0
    assert yaml.safe_load(out)["kind"] == "Job"
    assert all(row.startswith("warning: ") for row in err)
    subjects = [row.split()[1] for row in err]
    assert subjects == ["--nodes", "store_secret:", "store_endpoint", "data"]
