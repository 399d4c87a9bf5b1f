"""doctor on folders; on real S3 servers it is in s3/test_verbs.py."""

from __future__ import annotations

import json
import subprocess

import pytest
from standin import launch

from jobs.access import Access
from jobs.s3 import S3Store
from jobs.s3faults import translate
from jobs.stores import FileStore
from launcher.doctors import probe, storedoctor


def test_a_folder_that_works_is_left_as_it_was(tmp_path):
    (tmp_path / "runs").mkdir()
    done = launch(tmp_path, "doctor", "--store", "runs")
    assert done.returncode == 0
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert [word for word, _ in lines] == ["ok"] * 7
    assert f"{(tmp_path / 'runs').as_uri()}: works" in done.stderr
    assert not list((tmp_path / "runs").rglob("*"))


def test_a_folder_that_is_not_there_is_made_for_the_probe_alone(tmp_path):
    done = launch(tmp_path, "doctor", "--store", "deep/runs", "--json")
    document = json.loads(done.stdout)
    assert document["works"]
    assert [row["check"] for row in document["checks"]] == [
        "PUT", "GET", "list", "multipart", "conditional PUT", "list uploads", "DELETE",
    ]  # fmt: skip
    assert not (tmp_path / "deep").exists()


def test_no_store_is_told(tmp_path):
    done = launch(tmp_path, "doctor")
    assert (done.returncode, done.stdout) == (78, "")
    assert "error: store: is not set" in done.stderr
    assert launch(tmp_path, "doctor", env={"LAUNCHER_BACKEND": "local"}).returncode == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("store", ["gs://x", "s3://", "s3:///x"])
def test_an_address_of_nothing_is_one_line(tmp_path, store):
    done = launch(tmp_path, "doctor", "--store", store)
    assert (done.returncode, done.stdout) == (78, "")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(("options", "code"), [("ro", 77), ("size=1m", 69)])
def test_a_folder_that_takes_nothing_is_told(tmp_path, missing, options, code):
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        missing("chaos", "needs root and mount namespaces")
    (tmp_path / "runs").mkdir()
    script = f'mount -t tmpfs -o {options} none runs && exec "$0" "$@"'
    before = ("unshare", "-m", "sh", "-c", script)
    done = launch(tmp_path, "doctor", "--store", "runs", before=before)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].startswith(("wrong", "ok"))
    assert "wrong" in done.stdout
    assert len(done.stderr.splitlines()) == 2


class Broken(FileStore):
    """A store that lies: whatever is in `wrong` does not hold."""

    def __init__(self, root, wrong):
        super().__init__(root)
        self.wrong = wrong

    def read(self, key):
        return b"other" if self.wrong == "GET" else super().read(key)

    def list(self, prefix):
        found = super().list(prefix)
        return iter(()) if self.wrong == "list" and "doctor" in prefix else found

    def sha256(self, key):
        return "0" if self.wrong == "multipart" and key.endswith("large") else super().sha256(key)

    def _proven(self, key, size, sha256):
        from jobs.stores import Stored

        return Stored(size, sha256)

    def swap(self, key, old, new):
        if self.wrong == "conditional PUT":
            self.write(key, new)
        else:
            super().swap(key, old, new)

    def delete(self, key):
        if self.wrong != "DELETE":
            super().delete(key)


@pytest.mark.parametrize("wrong", ["GET", "list", "multipart", "conditional PUT", "DELETE"])
def test_each_check_can_fail(tmp_path, wrong):
    checks = {row.name: row for row in probe.everything(Broken(tmp_path, wrong))}
    assert not checks[wrong].good
    assert "\n" not in checks[wrong].text
    assert probe.failure(checks[wrong]).code == 78
    assert all(row.good for row in probe.everything(FileStore(tmp_path)))


def test_others_are_tried_in_order_of_their_changes():
    how = Access(endpoint="http://team.s3.example:9000", checksum="sha256")
    found = list(storedoctor._others("s3://team/x", how, "eu-1"))
    assert how not in found
    assert len(found) == len(set(found))
    counts = [storedoctor._changes(how, other) for other in found]
    assert counts == sorted(counts)
    single = [
        storedoctor.lines(storedoctor._rows(how, other, SETTINGS))
        for other in found[: counts.count(1)]
    ]
    assert sorted(single) == [
        ['store_addressing = "virtual"'],
        ['store_checksum = "md5"'],
        ['store_checksum = "none"'],
        ['store_endpoint = "http://s3.example:9000"'],
        ['store_endpoint = "https://team.s3.example:9000"'],
        ['store_region = "eu-1"'],
    ]


def test_an_address_has_no_bucket_before_it():
    for endpoint, styles in (("http://127.0.0.1:9", set()), ("http://[::1]:9", set()),
                             ("http://localhost:9", {"virtual"})):  # fmt: skip
        how = Access(endpoint=endpoint, addressing="path")
        found = {other.addressing for other in storedoctor._others("s3://b/x", how, "")} - {"path"}
        assert found == styles


class SETTINGS:
    class target:  # noqa: N801
        store_endpoint_here = ""


def refusal(code, message="", status=400, headers=None):
    from botocore.exceptions import ClientError

    answer = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers or {}},
    }
    error = translate(ClientError(answer, "PutObject"), "s3://b/region/x at http://h")
    error.__cause__ = ClientError(answer, "PutObject")
    return error


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (("NoSuchBucket", "", 404), "store"),
        (("InvalidBucketName",), "store"),
        (("AccessDenied", "", 403), "credentials"),
        (("InvalidAccessKeyId", "", 403), "credentials"),
        (
            ("XAdminUserNotFound", "No user exists with the provided access key ID", 404),
            "credentials",
        ),
        (("AuthorizationHeaderMalformed", "expecting 'eu-1'"), "store_region"),
        (("IllegalLocationConstraintException", "wrong region"), "store_region"),
        (("PermanentRedirect", "use the endpoint", 301), "store_endpoint"),
        (("InvalidArgument", "x-amz-checksum-sha256"), "store_checksum"),
        (("NotImplemented", "a header: Checksum", 501), "store_checksum"),
        (("SlowDown", "", 503), "store_endpoint"),
        (("MethodNotAllowed", "", 405), ""),
    ],
)
def test_an_answer_blames_a_setting(error, setting):
    assert probe._blamed(refusal(*error)) == setting


@pytest.mark.parametrize(
    ("error", "region"),
    [
        (("AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'eu-1'"), "eu-1"),
        (("PermanentRedirect", "", 301, {"x-amz-bucket-region": "eu-2"}), "eu-2"),
        (("AuthorizationHeaderMalformed", "no idea"), ""),
        (("AuthorizationQueryParametersError", 'expected "us-1", got x'), "us-1"),
    ],
)
def test_the_region_that_a_server_names_is_found(error, region):
    assert probe.region_named(refusal(*error)) == region
    assert probe.region_named(None) == ""


def test_a_proxy_is_asked_and_its_password_is_not_told(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:hunter2@proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    check = probe.connect("http://s3.example")
    assert check.good
    assert "proxy.example" in check.text
    assert "hunter2" not in check.text
    monkeypatch.setenv("no_proxy", "localhost")
    assert not probe.connect("http://localhost:1").good


def test_the_settings_of_the_pods_are_those_that_are_tried():
    assert isinstance(storedoctor._store("s3://b/p", Access()), S3Store)
