"""cache list and prune on a folder store: only what a run makes anew goes, and only with --yes."""

from __future__ import annotations

import json
import os
import time

import pytest

from jobs import commits
from jobs.stores import FileStore
from launcher import cli

DAY = 86400
PROMPTS = "cache/prompts/" + "0" * 64 + ".jsonl"


@pytest.fixture
def store(tmp_path):
    """Two sets of graphs and three of latents, 40 days old but for one of each; and prompts."""
    store = FileStore(tmp_path / "runs")
    for kind, key in [("graphs", "a"), ("graphs", "b"), *(("latents", k) for k in "cde")]:
        folder = tmp_path / f"files-{key}"
        folder.mkdir()
        (folder / "file").write_bytes(b"x" * 2048)
        commits.commit(store, f"cache/{kind}/{key}", folder)
    store.write(PROMPTS, b"{}")
    store.write("r/spec.json", b"{}")
    old = time.time() - 40 * DAY
    for path in store.root.rglob("*"):
        if path.is_file() and path.parent.name not in ("a", "c"):
            os.utime(path, (old, old))
    return store


@pytest.fixture
def run(tmp_path, monkeypatch, capfd, store):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("LAUNCHER_")]:
        monkeypatch.delenv(name)

    def call(*arguments, code=0):
        assert cli.main(["cache", *arguments, "--store", "runs"]) == code
        return capfd.readouterr()

    return call


def keys(store):
    return {entry.key.split("/")[2] for entry in store.list("cache/") if "prompts" not in entry.key}


def test_list_tells_how_much_of_each_kind_there_is(run):
    out = run("list").out.splitlines()
    assert [line.split()[:2] for line in out[1:]] == [["graphs", "2"], ["latents", "3"]]
    graphs, latents = json.loads(run("list", "--json").out)
    assert graphs["bytes"] > 2 * 2048
    assert latents["bytes"] > 3 * 2048
    assert latents["oldest_s"] > 39 * DAY > latents["newest_s"]


def test_prune_removes_what_is_old_and_nothing_else(run, store):
    told = run("prune")
    assert [line.split()[0] for line in told.out.splitlines()] == [
        "cache/graphs/b", "cache/latents/d", "cache/latents/e",
    ]  # fmt: skip
    assert "--yes does" in told.err
    assert keys(store) == set("abcde"), "nothing was asked to go"
    assert "removed 3 sets" in run("prune", "--yes").err
    assert keys(store) == {"a", "c"}
    assert store.read(PROMPTS)
    assert store.read("r/spec.json")
    assert "nothing to remove" in run("prune", "--yes").err
    run("prune", "--older-than", "0s", "--yes")
    assert keys(store) == set()
    assert "no cache" in run("list").err


def test_a_set_is_as_old_as_its_newest_object(run, store):
    old = time.time() - 40 * DAY
    file = next(path for path in (store.root / "cache/graphs/a").iterdir() if path.name == "file")
    os.utime(file, (old, old))
    run("prune", "--yes")
    assert keys(store) == {"a", "c"}


def test_what_is_no_time_is_refused(run):
    assert "--older-than" in run("prune", "--older-than", "soon", code=2).err
