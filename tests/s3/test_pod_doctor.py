"""What `launcher doctor --pod` runs in its pod, on a real S3 server and on folders."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys

import pytest
import servers

from jobs import doctor
from jobs.stores import FileStore

STEPS = ["PUT", "GET", "list", "multipart", "DELETE"]


def run(folder, **variables):
    """Run the program as the pod does, and return its code and what it reports."""
    message = folder / "termination-log"
    kept = {key: os.environ[key] for key in os.environ if not key.startswith(("JOB_", "AWS_"))}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.doctor"], capture_output=True, text=True, timeout=120,
        env={**kept, "TERMINATION_LOG": str(message), **variables}, check=False,
    )  # fmt: skip
    assert servers.SECRET_KEY not in done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    assert message.read_text().strip() == line
    assert len(line) < doctor.MESSAGE_BYTES
    return done.returncode, json.loads(line)


def access(server, **others):
    return {
        "JOB_STORE_ENDPOINT": server.endpoint,
        "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY,
        **others,
    }


@pytest.mark.store
def test_a_store_that_works_is_told_and_left_as_it_was(versitygw, tmp_path):
    bucket = versitygw.bucket()
    url = f"s3://{bucket}/team"
    code, told = run(tmp_path, JOB_STORE=url, **access(versitygw))
    assert (code, told["works"], told["store"]) == (0, True, url)
    assert [row["check"] for row in told["checks"]] == STEPS
    assert told["machine"] == os.uname().machine
    from jobs.access import Access
    from jobs.stores import open_store

    assert not list(open_store(f"s3://{bucket}", Access(endpoint=versitygw.endpoint)).list(""))


@pytest.mark.store
@pytest.mark.parametrize(
    ("wrong", "code", "word"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "other"}, 78, "secret"),
        ({"AWS_ACCESS_KEY_ID": ""}, 78, "no credentials"),
        ({"JOB_STORE": "s3://nobody-has-it/x"}, 78, "no such bucket"),
        ({"JOB_STORE": "gs://x"}, 78, "gs://x"),
        ({"JOB_STORE": ""}, 78, "JOB_STORE"),
        ({"JOB_STORE_CHECKSUM": "crc"}, 78, "JOB_STORE_CHECKSUM"),
    ],
)
def test_what_is_wrong_is_told(versitygw, tmp_path, wrong, code, word):
    url = f"s3://{versitygw.bucket()}/team"
    variables = {"JOB_STORE": url, **access(versitygw), "AWS_EC2_METADATA_DISABLED": "true"}
    ended, told = run(tmp_path, **{"HOME": str(tmp_path), **variables, **wrong})
    assert (ended, told["works"]) == (code, False)
    (row,) = told["checks"]
    assert not row["ok"]
    assert word in row["text"]


def test_a_server_that_is_away_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.s3faults.FIRST_WAIT", 0.0)
    monkeypatch.setattr("jobs.s3faults.LAST_WAIT", 0.0)
    for name, value in {
        "JOB_STORE": "s3://bucket/x", "JOB_STORE_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    code, told = doctor.report()
    assert (code, told["works"]) == (69, False)
    assert [row["check"] for row in told["checks"]] == ["PUT"]
    assert "127.0.0.1:9" in told["checks"][0]["text"]


def test_a_folder_that_works_is_left_as_it_was(tmp_path):
    store = tmp_path / "store"
    code, told = run(tmp_path, JOB_STORE=store.as_uri())
    assert (code, told["works"]) == (0, True)
    assert not list(store.rglob("*"))


class Broken(FileStore):
    """A store that lies: whatever is in `wrong` does not hold."""

    def __init__(self, root, wrong):
        super().__init__(root)
        self.wrong = wrong

    def read(self, key):
        return b"other" if self.wrong == "GET" else super().read(key)

    def list(self, prefix):
        return iter(()) if self.wrong == "list" else super().list(prefix)

    def sha256(self, key):
        lies = self.wrong == "multipart" and key.endswith("large")
        return secrets.token_hex(32) if lies else super().sha256(key)

    def _proven(self, key, size, sha256):
        from jobs.stores import Stored

        return Stored(size, sha256)

    def delete(self, key):
        if self.wrong != "DELETE":
            super().delete(key)


@pytest.mark.parametrize("wrong", STEPS[1:])
def test_each_step_can_fail_and_ends_it(tmp_path, wrong):
    found = list(doctor.tried(Broken(tmp_path, wrong)))
    assert [name for name, _ in found] == STEPS[: STEPS.index(wrong) + 1]
    assert [name for name, error in found if error] == [wrong]


def test_a_long_reason_fits_a_termination_message(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_put", lambda *_: (_ for _ in ()).throw(OSError("x" * 9000)))
    monkeypatch.setenv("JOB_STORE", tmp_path.as_uri())
    code, told = doctor.report()
    assert code == 69
    assert len(json.dumps(told)) < doctor.MESSAGE_BYTES


@pytest.mark.store
def test_where_no_cluster_answers_the_store_is_tried_all_the_same(
    versitygw, place, monkeypatch, capfd
):
    from launcher import cli

    config = place / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}
    context = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": [cluster],
        "contexts": [context], "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    config.write_text(json.dumps(document))
    monkeypatch.chdir(place)
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.setenv("LAUNCHER_IMAGE", "registry.example/jobs:1")
    url = f"s3://{versitygw.bucket()}/team"
    monkeypatch.setenv("LAUNCHER_STORE", url)

    def ask(endpoint):
        monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", endpoint)
        code = cli.main(["doctor", "--json"])
        document = json.loads(capfd.readouterr().out)
        return code, {row["check"]: row for row in document["checks"]}, document

    code, lines, document = ask(versitygw.endpoint)
    assert (code, lines["context"]["state"], lines["server"]["state"]) == (69, "ok", "fail")
    assert lines["store"]["state"] == "ok"
    assert url in lines["store"]["text"]
    assert document["store"]["works"]
    code, lines, document = ask("https" + versitygw.endpoint.removeprefix("http"))
    assert lines["store"]["state"] == "fail"
    assert f'store_endpoint = "{versitygw.endpoint}"' in lines["store"]["fix"]
    assert document["store"]["settings"] == {"store_endpoint": versitygw.endpoint}
