"""ckpt list, verify, pin and prune on a folder store, and list --store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time

import pytest
from standin import launch

from jobs import commits, layout, retention
from jobs.stores import Entry, FileStore
from launcher import cli, found

STEPS = (10, 20, 30, 40)
HOUR = 3600


@pytest.fixture
def store(tmp_path):
    """A run with four committed checkpoints and one that was never committed, two days old."""
    store = FileStore(tmp_path / "runs")
    for step in STEPS:
        folder = tmp_path / f"set-{step}"
        folder.mkdir()
        (folder / "lora.safetensors").write_bytes(b"w" * step)
        (folder / "loop.json").write_text(str(step))
        commits.commit(store, retention.checkpoint("r", step), folder)
    store.write("r/checkpoints/step-00000050/lora.safetensors", b"half")
    old = time.time() - 48 * HOUR
    os.utime(store.root / "r/checkpoints/step-00000050/lora.safetensors", (old, old))
    store.write("r/claim.json", b"{}")
    store.write("r/spec.json", json.dumps({"spec": {"kind": "train"}}).encode())
    return store


@pytest.fixture
def run(tmp_path, monkeypatch, capfd, store):
    """Run the launcher in this process on that store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("LAUNCHER_")]:
        monkeypatch.delenv(name)

    def call(*arguments):
        code = cli.main([*arguments, "--store", "runs"])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


def steps(store):
    return commits.committed_steps(store, "r")


def test_list_tells_size_age_pin_and_newest(run, store):
    retention.pin(store, "r", 10, on=True)
    rows = json.loads(run("ckpt", "list", "r", "--json").stdout)
    assert [(row["step"], row["files"], row["bytes"]) for row in rows] == [
        (step, 2, step + 2) for step in STEPS
    ]
    assert [row["step"] for row in rows if row["pinned"]] == [10]
    assert [row["step"] for row in rows if row["newest"]] == [40]
    old = time.time() - 3 * HOUR
    os.utime(store.root / "r/checkpoints/step-00000020/COMMITTED", (old, old))
    lines = run("ckpt", "list", "r").stdout.splitlines()
    assert lines[0].split() == ["STEP", "SIZE", "COMMITTED"]
    assert lines[1].split()[0] == "10"
    assert lines[1].endswith("pinned")
    assert "22 B" in lines[2]
    assert "3h 00m ago" in lines[2]
    assert lines[4].endswith("newest")
    assert len(lines) == 5, "what was never committed is no checkpoint"


def test_verify_tells_what_is_whole_and_names_what_is_not(run, store):
    done = run("ckpt", "verify", "r")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "step 10: 2 files, 12 B, verified"
    assert len(done.stdout.splitlines()) == 4
    path = store.root / "r/checkpoints/step-00000020/lora.safetensors"
    path.write_bytes(b"v" * 20)
    done = run("ckpt", "verify", "r")
    assert done.returncode == 66
    told, error, hint = done.stderr.splitlines()
    assert told.startswith("step 20: ")
    assert "r/checkpoints/step-00000020/lora.safetensors: not the file that was committed" in told
    assert error == "error: run 'r': step 20: not what was committed"
    assert hint == "hint: whole: step 10, 30, 40"
    assert len(done.stdout.splitlines()) == 3
    (store.root / "r/checkpoints/step-00000030/loop.json").unlink()
    done = run("ckpt", "verify", "r")
    assert "error: run 'r': step 20, 30: not what was committed" in done.stderr
    assert "r/checkpoints/step-00000030/loop.json: is gone" in done.stderr
    assert run("ckpt", "verify", "r", "--step", "40").returncode == 0
    done = run("ckpt", "verify", "r", "--step", "30")
    assert (done.returncode, done.stdout) == (66, "")
    assert "step-00000030/loop.json: is gone" in done.stderr
    path.with_name("MANIFEST.json").write_text("{}")
    assert "its manifest is not the one" in run("ckpt", "verify", "r", "--step", "20").stderr


def test_prune_lists_first_and_removes_when_told(run, store):
    retention.pin(store, "r", 10, on=True)
    wanted = ("ckpt", "prune", "r", "--keep-last", "1", "--keep-every", "30")
    dry = run(*wanted)
    assert dry.returncode == 0
    assert dry.stdout.splitlines() == [
        "r/checkpoints/step-00000020 (22 B)",
        "r/checkpoints/step-00000050 (never committed)",
    ]
    assert "would remove 2 (22 B of checkpoints); --yes does" in dry.stderr
    assert steps(store) == list(STEPS)
    done = run(*wanted, "--yes")
    assert done.stdout == dry.stdout
    assert "removed 2" in done.stderr
    assert steps(store) == [10, 30, 40]
    assert not list(store.list("r/checkpoints/step-00000020/"))
    assert not list(store.list("r/checkpoints/step-00000050/"))
    again = run(*wanted, "--yes")
    assert (again.stdout, again.stderr) == ("", "r: nothing to remove\n")


def test_prune_keeps_everything_committed_unless_told_how_many(run, store):
    done = run("ckpt", "prune", "r", "--yes")
    assert done.stdout.splitlines() == ["r/checkpoints/step-00000050 (never committed)"]
    assert steps(store) == list(STEPS)


def test_the_newest_is_never_removed(run, store):
    retention.pin(store, "r", 10, on=True)
    assert run("ckpt", "prune", "r", "--keep-last", "1", "--yes").returncode == 0
    assert steps(store) == [10, 40]


def test_what_rested_less_than_asked_for_is_left_alone(run, store):
    done = run("ckpt", "prune", "r", "--older-than", "72")
    assert "1 set that nobody committed rested for less; see --older-than" in done.stderr
    done = run("ckpt", "prune", "r", "--older-than", "72", "--yes")
    assert done.stdout == ""
    assert list(store.list("r/checkpoints/step-00000050/"))
    done = run("ckpt", "prune", "r", "--older-than", "47.5", "--yes")
    assert not list(store.list("r/checkpoints/step-00000050/"))


def test_uploads_that_were_not_ended_are_told_and_aborted(run, store, monkeypatch):
    aborted = []
    uploads = [Entry("r/checkpoints/x", 0, modified=time.time() - age * HOUR) for age in (1, 48)]
    monkeypatch.setattr(FileStore, "unfinished", lambda self, prefix: uploads)
    monkeypatch.setattr(
        FileStore, "abort", lambda self, *given: aborted.append(given) or len(aborted)
    )
    dry = run("ckpt", "prune", "r")
    assert "r/checkpoints/x (upload that was not ended)" in dry.stdout
    assert dry.stdout.count("not ended") == 1
    assert not aborted
    run("ckpt", "prune", "r", "--yes")
    ((prefix, before),) = aborted
    assert prefix == "r/"
    assert 0 <= time.time() - 24 * HOUR - before < 60


def test_a_pin_is_set_and_taken_back(run, store):
    assert run("ckpt", "pin", "r", "20").stderr == "r: step 20 stays, whatever retention says\n"
    assert retention.pinned(store, "r") == {20}
    assert commits.verify_set(store, retention.checkpoint("r", 20))
    assert run("ckpt", "pin", "r", "20", "--off").stderr == "r: step 20 may go\n"
    assert retention.pinned(store, "r") == set()


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (("list", "nobody"), 66, "run 'nobody': no such run in file://", "--store"),
        (("list", "../r"), 66, "run '../r': no such run", ""),
        (("verify", "nobody"), 66, "run 'nobody': no such run", ""),
        (("verify", "r", "--step", "50"), 66, "step 50 is no committed checkpoint", "10, 20"),
        (("pin", "r", "50"), 66, "step 50 is no committed checkpoint", "there are 10, 20, 30, 40"),
        (("pin", "r", "0"), 2, "STEP", "launcher ckpt pin --help"),
        (("prune", "r", "--keep-every", "3"), 2, "--keep-every", "--keep-last"),
        (("prune", "r", "--keep-last", "-1"), 2, "--keep-last", ""),
        (("prune", "nobody", "--keep-last", "1"), 66, "run 'nobody': no such run", ""),
    ],
)
def test_wrong_input_is_one_line(run, store, arguments, code, error, hint):
    done = run("ckpt", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert hint in (lines[1] if len(lines) > 1 else "")
    assert len(lines) <= 2
    assert steps(store) == list(STEPS)


def test_a_run_without_commit_is_told(run, store):
    store.write("new/claim.json", b"{}")
    assert run("ckpt", "list", "new").stderr == "new: has no committed checkpoint yet\n"
    assert json.loads(run("ckpt", "list", "new", "--json").stdout) == []
    assert run("ckpt", "verify", "new").returncode == 66


def test_a_store_lists_its_runs_by_their_records(run, store):
    for name, result in (("good", {"loss": 1}), ("torn", {"failed": [3]})):
        store.write(f"{name}/spec.json", json.dumps({"spec": {"kind": "infer"}}).encode())
        store.write(f"{name}/result.json", json.dumps(result).encode())
        store.write(f"{name}/images/00001-00.png", b"png")
    end = {"attempt": 1, "code": 79, "reason": "silent", "namespace": "n"}
    for name, epoch in (("dead", 1), ("again", 2)):
        store.write(f"{name}/claim.json", json.dumps({"epoch": epoch}).encode())
        store.write(f"{name}/end.json", json.dumps(end).encode())
    store.write("broken/claim.json", b"{}")
    store.write("broken/spec.json", b"garbage")
    store.write("cache/graphs/x", b"no run")
    store.write("strange/file", b"no run")
    done = run("list", "--json")
    rows = {row["run"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == {"r", "good", "torn", "broken", "dead", "again"}
    assert (rows["r"]["kind"], rows["r"]["state"], rows["r"]["committed"]) == (
        "train", "unknown", 40,
    )  # fmt: skip
    assert (rows["good"]["state"], rows["good"]["code"]) == ("succeeded", 0)
    assert (rows["torn"]["state"], rows["torn"]["code"]) == ("failed", 74)
    assert rows["torn"]["code_name"] == "pictures failed"
    assert (rows["good"]["pictures"], rows["good"]["records"]) == (1, f"{store.url}/good")
    assert (rows["broken"]["kind"], rows["broken"]["state"]) == ("", "unknown")
    assert (rows["dead"]["state"], rows["dead"]["code"], rows["dead"]["reason"]) == (
        "failed", 79, "silent",
    )  # fmt: skip
    assert (rows["again"]["state"], rows["again"]["reason"]) == ("unknown", "")
    assert "broken/spec.json: is not JSON" in done.stderr
    text = run("list").stdout.splitlines()
    assert text[0].split() == ["RUN", "KIND", "STATE", "HOLDS", "SIZE", "CHANGED"]
    (row,) = [line for line in text if line.startswith("r ")]
    assert "step 40" in row
    assert row.endswith("ago")


def test_an_empty_store_lists_nothing(tmp_path, monkeypatch):
    done = launch(tmp_path, "list", "--store", "empty", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert launch(tmp_path, "list", "--store", "empty").stdout == ""


def test_store_alone_is_the_one_that_is_configured(run, store, tmp_path, monkeypatch, capfd):
    (tmp_path / "launcher.toml").write_text('store = "runs"\nbackend = "local"\n')
    for arguments in (["list", "--store"], ["list", "--store", "--json"]):
        assert cli.main(arguments) == 0
        assert "r" in capfd.readouterr().out
    assert cli.main(["list", "--backend", "local", "--store", "runs"]) == 0
    assert capfd.readouterr().out == "", "no run of this machine is there"
    assert cli.main(["list", "--json", "--store="]) == 2


def test_runs_of_this_machine_have_their_state_in_the_list_of_the_store(place):
    launch(place, "submit", "train", "--backend", "local", "--name", "mine", "--steps", "2",
           "--wait", env={"STANDIN_END": "79 stalled: x"})  # fmt: skip
    (row,) = json.loads(launch(place, "list", "--store", "runs", "--json").stdout)
    assert (row["run"], row["state"], row["code"]) == ("mine", "failed", 79)


def test_ages_are_told_from_the_newest_object():
    row = found.Found(
        run="r", kind="train", state="unknown", code=None, code_name=None, reason="",
        committed=3, pictures=2, changed="2026-11-23T10:00:00+00:00", bytes=2048, records="s3://b/r",
    )  # fmt: skip
    now = 1795428000 + 2 * HOUR  # 2026-11-23T12:00:00Z
    assert re.split(" {2,}", found.table([row], now).splitlines()[1]) == [
        "r", "train", "unknown", "step 3, 2 pictures", "2.0 KiB", "2h 00m ago",
    ]  # fmt: skip


def test_layout_is_the_one_the_tests_write():
    assert retention.checkpoint("r", 10) == "r/checkpoints/step-00000010"
    assert layout.PINNED == "PINNED"
