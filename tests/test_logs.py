"""The flags of `logs` on a run of this machine; a cluster's are in test_cluster_logs.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.backends.localrun import Files, Record

LINES = [
    "2026-01-01T00:00:00Z I jobs.runtime jobs=0.1.0 run=cat kind=train spec=abc",
    "[0] {old} I jobs.train step=1 loss=3",
    "[1] {old} I jobs.train step=1 loss=4",
    "Traceback (most recent call last):",
    "[0] {new} I jobs.train step=2 loss=2",
    "[10] {new} I jobs.train step=2 loss=1",
    "no time, and no end of the line",
]


def ago(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))


@pytest.fixture
def run(tmp_path: Path) -> Files:
    files = Files(tmp_path / "cat")
    files.local.mkdir(parents=True)
    record = Record(
        name="cat", kind="train", uid="u", submitted=ago(9000), workers=2,
        environment={"JOB_SPEC": json.dumps({"kind": "train", "steps": 2})},
    )  # fmt: skip
    files.plan.write_bytes(record.to_bytes())
    text = "\n".join(LINES).format(old=ago(7200), new=ago(60))
    files.console.write_text(text)
    return files


def shown(files: Files, capfd: Any, *flags: str) -> tuple[int, list[int], str]:
    """Return the exit code, which of the lines were printed, and what was said."""
    where = ["--backend", "local", "--store", str(files.run.parent)]
    code = cli.main(["logs", "cat", *where, *flags])
    out, err = capfd.readouterr()
    rows = files.console.read_text().splitlines()
    return code, [rows.index(line) for line in out.splitlines()], err


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ((), [0, 1, 2, 3, 4, 5, 6]),
        (("--rank", "1"), [2]),
        (("--rank", "10"), [5]),
        (("--grep", r"loss=[12]\b"), [4, 5]),
        (("--grep", "step=2", "--rank", "0"), [4]),
        (("--since", "1h"), [4, 5, 6]),
        (("--since", "1d"), [1, 2, 3, 4, 5, 6]),
        (("--tail", "2"), [5, 6]),
        (("--tail", "0"), []),
        (("--tail", "1", "--grep", "loss"), [5]),
    ],
)
def test_the_lines_that_were_asked_for(
    run: Files, capfd: Any, flags: tuple[str, ...], lines: list[int]
) -> None:
    assert shown(run, capfd, *flags)[:2] == (0, lines)


def test_following_a_run_that_ended_tells_its_end(run: Files, capfd: Any) -> None:
    run.termination.write_text("70 diverged: loss is nan")
    code, lines, words = shown(run, capfd, "-f", "--tail", "1")
    assert (code, lines) == (70, [6])
    assert "loss is nan" in words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--since", "soon"), "error: --since 'soon': is no duration"),
        (("--grep", "("), "error: --grep '(': is no regular expression: missing )"),
        (("--rank", "-1"), "error: Invalid value for '--rank'"),
    ],
)
def test_a_flag_that_means_nothing_is_2(
    run: Files, capfd: Any, flags: tuple[str, ...], words: str
) -> None:
    code, lines, told = shown(run, capfd, *flags)
    assert (code, lines) == (2, [])
    assert told.startswith(words)
