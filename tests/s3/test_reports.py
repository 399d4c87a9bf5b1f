"""The verb `report` on a real S3 server: the store alone, as on a machine that knows no run."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess

import pytest
from PIL import Image

from jobs.access import Access
from jobs.stores import FileStore, open_store
from launcher import cli

pytestmark = pytest.mark.store

COUNT = 6


def fill(store, run, kind):
    """Write a run with COUNT pictures, which trains if that is its kind."""
    rows = []
    for line in range(1, COUNT + 1):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (line * 30, 0, 0)).save(buffer, "PNG")
        name, data = f"images/{line:05d}-00.png", buffer.getvalue()
        store.write(f"{run}/{name}", data)
        rows.append({"line": line, "image": 0, "step": line, "prompt": f"prompt {line}"})
        rows[-1] |= {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
    store.write(f"{run}/manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    store.write(f"{run}/spec.json", json.dumps({"spec": {"kind": kind}}).encode())
    if kind == "train":
        store.write(f"{run}/metrics.jsonl", b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')


@pytest.fixture
def there(versitygw, tmp_path):
    """Return a bucket's URL and its store; a folder store beside it holds the same."""
    url = f"s3://{versitygw.bucket()}/team"
    store = open_store(url, Access(endpoint=versitygw.endpoint))
    for kind in ("infer", "train"):
        fill(store, kind, kind)
        fill(FileStore(tmp_path / "same"), kind, kind)
    return url, store


@pytest.fixture
def run(tmp_path, monkeypatch, capfd, versitygw):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", versitygw.endpoint)

    def call(*arguments):
        code = cli.main(["report", *arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_a_bucket_and_a_folder_give_the_same_gallery(run, there, tmp_path):
    url, _ = there
    done = run("infer", "--store", url, "--out", "remote")
    assert (done.returncode, done.stdout) == (0, "remote/index.html\n"), done.stderr
    assert run("infer", "--store", "same", "--out", "local").returncode == 0
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")
    assert len(tree(tmp_path / "remote/infer/images")) == COUNT


def test_a_training_run_in_a_bucket(run, there, tmp_path):
    url, _ = there
    done = run("train", "--store", url)
    assert (done.returncode, done.stdout) == (0, "report-train/index.html\n"), done.stderr
    page = (tmp_path / "report-train/index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == COUNT
    assert '"loss":[2.0,1.0]' in page


def test_a_report_goes_on_where_it_was_stopped(run, there, tmp_path):
    url, store = there
    whole = store.read("infer/images/00004-00.png")
    store.delete("infer/images/00004-00.png")
    done = run("infer", "--store", url)
    assert done.returncode == 66
    assert "error: infer/images/00004-00.png: is gone from" in done.stderr
    assert not (tmp_path / "report-infer/index.html").exists()
    left = len(tree(tmp_path / "report-infer/infer/images"))
    assert left > 0
    store.write("infer/images/00004-00.png", whole)
    done = run("infer", "--store", url)
    assert f"{COUNT} pictures, {COUNT - left} of them fetched" in done.stderr


def test_a_store_that_does_not_answer(run, there, monkeypatch):
    url, _ = there
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", "http://127.0.0.1:9")
    done = run("infer", "--store", url)
    assert done.returncode == 69
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
