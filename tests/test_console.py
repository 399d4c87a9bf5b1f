"""The copy of what a pod prints: whole, in order, stamped, and never in the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import console, layout
from jobs.claims import Claim
from jobs.specs import TrainSpec, to_json
from jobs.stores import FileStore

LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (.*)")
PROGRAM = """
import os, subprocess, sys
from jobs.console import recorded

def main():
    print("first", flush=True)
    subprocess.run(["sh", "-c", "echo from a child; echo aside >&2"])
    {body}
    os.write(1, b"no end")
    return 75

sys.exit(recorded(main))
"""


def recorded(work: Path, body: str = "pass", **changes: str) -> tuple[bytes, bytes]:
    """Run a program under the recorder; return its stdout and what was copied, stamps checked."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JOB_")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env=env | {"JOB_WORK": str(work), **changes},
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (75, b"")
    stamps, text = [], b""
    for path in sorted(work.glob("logs/node-*/*.log")):
        found = [LINE.fullmatch(row) for row in path.read_bytes().splitlines()]
        stamps += [row[1] for row in found]
        text += b"".join(row[2] + b"\n" for row in found)
    assert stamps == sorted(stamps)
    return ended.stdout, text


def test_all_that_is_printed_passes_and_is_copied_in_the_same_order(tmp_path: Path) -> None:
    out, copy = recorded(tmp_path)
    assert out == b"first\nfrom a child\naside\nno end"
    assert copy == out + b"\n"


def test_many_lines_make_several_parts_that_lie_in_order(tmp_path: Path) -> None:
    out, copy = recorded(tmp_path, "[print(f'line {n}') for n in range(60_000)]")
    paths = sorted((tmp_path / "logs" / "node-0").iterdir())
    keys = [layout.console_of(f"r/logs/node-0/{path.name}") for path in paths]
    assert [key[2] for key in keys] == list(range(len(paths)))
    assert len(paths) > 2
    assert copy == out + b"\n"
    assert out.count(b"\nline ") >= 59_999


def test_a_full_disk_ends_the_copy_and_not_the_output(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node-0").write_text("a file where the folder would be")
    out, copy = recorded(tmp_path)
    assert out.endswith(b"no end")
    assert copy == b""


def test_nobody_reading_stdout_stops_nothing(tmp_path: Path) -> None:
    many = "[print('x' * 99) for n in range(20_000)]"
    env = {**os.environ, "JOB_WORK": str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=many)], env=env, stdout=subprocess.PIPE
    )
    child.stdout.close()
    assert child.wait(60) == 75


def job(store: Path) -> dict[str, str]:
    return {
        "JOB_SPEC": to_json(TrainSpec(model="tiny", data="tiny")), "JOB_RUN": "r", "JOB_UID": "u",
        "JOB_DEVICE": "CPU", "JOB_STORE": str(store), "JOB_COMPLETION_INDEX": "3", "JOB_NODES": "4",
        "JOB_MASTER": "r-0", "JOB_MASTER_PORT": "8118",
    }  # fmt: skip


def test_the_last_words_are_sent_to_the_run_that_is_ours(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.write("r/claim.json", Claim("c", "n", "u", 1).to_json())
    _, copy = recorded(tmp_path / "work", **job(store.root))
    (key,) = [e.key for e in store.list("r/logs/")]
    assert layout.console_of(key)[::2] == (3, 0)
    assert store.read(key).endswith(b" no end\n")
    assert store.read(key).count(b"\n") == copy.count(b"\n")


@pytest.mark.parametrize("uid", ["", "somebody-else"])
def test_another_ones_run_gets_no_words_of_ours(tmp_path: Path, uid: str) -> None:
    store = FileStore(tmp_path / "store")
    if uid:
        store.write("r/claim.json", Claim("c", "n", uid, 1).to_json())
    recorded(tmp_path / "work", **job(store.root))
    assert not list(store.list("r/logs/"))


def test_a_pod_of_several_tells_how_to_follow_rank_0() -> None:
    several = {"JOB_RUN": "cat", "JOB_NODES": "2", "JOB_COMPLETION_INDEX": "1"}
    line = console.first_line(several)
    labels = "batch.kubernetes.io/job-name=cat,batch.kubernetes.io/job-completion-index=0"
    assert f"kubectl logs -f -l {labels};" in line
    assert line.startswith("node=1 nodes=2;")
    assert console.first_line({**several, "JOB_NODES": "1"}) == ""


def test_the_supervisor_says_it_first(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("JOB_")}
    env |= {"JOB_RUN": "cat", "JOB_NODES": "2", "JOB_WORK": str(tmp_path / "work")}
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.runtime"], env=env, capture_output=True, text=True, timeout=60
    )
    assert " I jobs.runtime node=0 nodes=2; rank 0: kubectl logs -f -l " in ended.stdout
    assert ended.stdout.splitlines()[0].endswith("all: launcher logs cat -f")
    (copy,) = (tmp_path / "work" / "logs" / "node-0").iterdir()
    assert copy.read_text().splitlines()[-1].endswith(ended.stdout.splitlines()[-1])
