"""What is made of answers that an API server seldom gives: late, lost, refused, another's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.specs import TrainSpec
from launcher import cli, clusterruns, data, fields
from launcher.backends import kubernetes, nodefacts
from launcher.backends.following import Changes
from launcher.backends.kubernetes import Kubernetes
from launcher.errors import Forbidden, NameTaken, NotFound, Unreachable
from launcher.jobends import JobEnd
from launcher.manifests import base, render
from launcher.plan import plan
from launcher.runwatch import Watched
from launcher.settings import Target

PLAN = plan(TrainSpec(), Target(image="i", store="s3://b/r"), name="cat", npus=1)
MANIFEST = render(PLAN, base("train"))
JOBS, PODS = "/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"
NEW = {"major": "1", "minor": "34", "gitVersion": "v1.34.3"}
Answer = tuple[int, Any]


def job(uid: str = "1", **metadata: Any) -> dict[str, Any]:
    return {**MANIFEST, "metadata": {**MANIFEST["metadata"], "namespace": "default", "uid": uid,
                                     **metadata}}  # fmt: skip


@dataclass
class Server:
    """Answers as it is told, in turn; the last answer of a request stays."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def says(self, request: str, *answers: Answer) -> None:
        self.answers[request] = list(answers)

    def answer(self, method: str, path: str) -> Answer:
        plain = f"{method} {path.partition('?')[0]}"
        request = plain + " dry" * ("dryRun" in path) + " more" * ("continue=" in path)
        request += " watch" * ("watch=1" in path)
        self.asked.append(request)
        rows = self.answers.get(request) or self.answers.get(plain) or [(404, {"message": "no"})]
        return rows.pop(0) if len(rows) > 1 else rows[0]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    told = Server()
    told.says("GET /version", (200, NEW))
    told.says(f"POST {JOBS} dry", (201, job()))
    told.says(f"POST {PODS} dry", (201, {}))
    told.says(f"GET {PODS}", (200, {"items": []}))
    told.says("GET /api/v1/namespaces/default/events", (200, {"items": []}))
    told.says("GET /api/v1/namespaces/default", (200, {}))
    with serving(told) as url:
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }))  # fmt: skip
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setattr(kubernetes, "LOOKS", (0, 0, 0))
        yield told


@contextmanager
def serving(told: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = told.answer(self.command, self.path)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_lost_create_is_found_and_anothers_is_told(server: Server) -> None:
    server.says(f"POST {JOBS}", (500, {"message": "etcd"}))
    server.says(f"GET {JOBS}/cat", (503, {"message": "starting"}), (200, job("7")))
    assert Kubernetes().submit(PLAN, MANIFEST).uid == "7"
    annotations = {**MANIFEST["metadata"]["annotations"], "launcher/spec-sha256": "another"}
    server.says(f"GET {JOBS}/cat", (200, job("8", annotations=annotations)))
    with pytest.raises(NameTaken, match="exists with another spec"):
        Kubernetes().submit(PLAN, MANIFEST)


def test_a_run_that_is_being_deleted_is_not_the_one_that_is_meant(server: Server) -> None:
    server.says(f"POST {JOBS}", (409, {"message": "exists", "reason": "AlreadyExists"}))
    server.says(f"GET {JOBS}/cat", (200, job()))
    assert Kubernetes().submit(PLAN, MANIFEST, idempotent=True).existed
    server.says(f"GET {JOBS}/cat", (200, job(deletionTimestamp="2026-01-01T00:00:00Z")))
    with pytest.raises(NameTaken, match="is being cancelled"):
        Kubernetes().submit(PLAN, MANIFEST, idempotent=True)


@pytest.mark.parametrize(("status", "known"), [(403, True), (404, True), (500, False)])
def test_only_what_may_not_be_read_or_is_not_there_is_left_out(
    server: Server, status: int, known: bool
) -> None:
    volcano = job()
    volcano["spec"] = {"template": {"spec": {"schedulerName": "volcano", "containers": []}}}
    server.says(f"GET {JOBS}/cat", (200, volcano))
    groups = "/apis/scheduling.volcano.sh/v1beta1/namespaces/default/podgroups"
    server.says(f"GET {groups}", (status, {"message": "no"}))
    if known:
        assert Kubernetes().snapshot("cat").pod_group is None
    else:
        with pytest.raises(Unreachable):
            Kubernetes().snapshot("cat")


def test_a_list_that_grew_too_old_between_two_pages_is_read_once_more(server: Server) -> None:
    columns = [{"name": name} for name in ("Name", "Status", "Completions", "Duration")]
    metadata = {"name": "cat", "labels": {}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    row = {"cells": ["cat", "Running", "0/1", "3s"], "object": {"metadata": metadata}}
    page = {"kind": "Table", "metadata": {}, "columnDefinitions": columns, "rows": [row]}
    server.says(f"GET {PODS}", (200, {**page, "rows": []}))
    server.says(f"GET {JOBS}", (200, {**page, "metadata": {"continue": "x"}}))
    server.says(f"GET {JOBS} more", (410, {"message": "too old"}), (200, {**page, "rows": []}))
    assert [found.run for found in Kubernetes().runs()] == ["cat"]
    assert server.asked.count(f"GET {JOBS} more") == 2
    server.says(f"GET {JOBS} more", (410, {"message": "too old"}))
    with pytest.raises(Unreachable, match="410"):
        Kubernetes().runs()


@pytest.mark.parametrize("padding", [0, 100_000])
def test_all_pages_of_pods_are_counted_and_one_that_grew_too_old_is_asked_for_again(
    server: Server, padding: int
) -> None:
    npu = "huawei.com/Ascend910"
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {npu: "8"}}}
    pod = {
        "metadata": {"name": "p"}, "status": {},
        "spec": {"nodeName": "n", "containers": [{"resources": {"requests": {npu: "1"}}}]},
    }  # fmt: skip

    def page(count: int, more: str) -> Answer:
        # The metadata stands first, as a server writes it.
        document = {"metadata": {"pad": "x" * padding, "continue": more}, "items": [pod] * count}
        return 200, json.dumps(document, separators=(",", ":")).encode()

    everywhere = "GET /api/v1/pods"
    server.says("GET /api/v1/nodes", (200, {"metadata": {}, "items": [node]}))
    server.says(everywhere, page(2, "x"))
    server.says(f"{everywhere} more", (410, {"message": "too old"}), page(3, "y"), page(1, ""))
    (found,) = nodefacts.nodes(Kubernetes().api, npu) or ()
    assert found.used == {npu: 6}
    server.says(f"{everywhere} more", (403, {"message": "no"}))
    (found,) = nodefacts.nodes(Kubernetes().api, npu) or ()
    assert found.used is None
    server.says("GET /api/v1/nodes", (403, {"message": "no"}))
    assert nodefacts.nodes(Kubernetes().api, npu) is None


@pytest.mark.parametrize(("code", "told"), [(403, True), (401, True), (410, False)])
def test_a_watch_that_is_refused_after_it_began_is_told(
    server: Server, code: int, told: bool
) -> None:
    event = {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "no"}}
    for path in (JOBS, PODS):
        server.says(f"GET {path} watch", (200, json.dumps(event).encode() + b"\n"))
    with Changes(Kubernetes().api, "cat") as changes:
        if told:
            with pytest.raises(Forbidden):
                changes.wait(10)
        else:
            assert changes.wait(1) == []


def test_a_run_that_took_the_name_meanwhile_is_another(server: Server) -> None:
    cluster = Kubernetes()
    server.says(f"GET {JOBS}/cat", (200, job("1")))
    watched = Watched(cluster, cluster.find("cat"), lambda text: None)
    watched.refresh()
    assert (watched.ended, watched.gone) == (False, False)
    assert clusterruns._left(cluster, "cat", "1") is not None
    server.says(f"GET {JOBS}/cat", (200, job("2")))
    watched.refresh()
    assert (watched.ended, watched.gone) == (True, True)
    assert clusterruns._left(cluster, "cat", "1") is None


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "FailedIndexes"}],
          "failedIndexes": "0"}  # fmt: skip
KILLED = {
    "metadata": {"name": "cat-0-x", "namespace": "default", "uid": "p",
                 "annotations": {fields.INDEX: "0", fields.FAILURES: "3"},
                 "ownerReferences": [{"uid": "7"}]},
    "spec": {"containers": [{"name": "main"}]},
    "status": {"phase": "Failed", "containerStatuses": [
        {"name": "main", "state": {"terminated": {"exitCode": 79, "reason": "Error",
                                                 "message": "79 stalled: worker 0: silent"}}}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([(200, job("7")), (200, {**job("7"), "status": FAILED})],
         "worker 0: silent; its 3 retries are used up"),
        ([(200, job("7")), (404, {"message": "no"})], "its Job was deleted"),
        ([(200, job("7")), (200, job("8"))], "its Job was deleted"),
    ],
)  # fmt: skip
def test_watching_a_fetch_ends_with_the_job_that_nobody_tries_again(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[Answer],
    told: str,
) -> None:
    """The last attempt's record cannot know that it was the last; a killed pod leaves none."""
    run = tmp_path / "store" / "cat"
    run.mkdir(parents=True)
    claim = {"uid": "7", "namespace": "default", "epoch": 4}
    (run / "claim.json").write_text(json.dumps(claim))
    (run / "end.json").write_text(json.dumps({**claim, "attempt": 4, "code": 79}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "WATCH_SECONDS", 0.05)
    server.says(f"GET {JOBS}/cat", *answers)
    server.says(f"GET {PODS}", (200, {"items": [KILLED]}))
    there = ("--backend", "kubernetes", "--store", f"file://{tmp_path}/store")
    assert cli.main(["fetch", "cat", "out", "--watch", *there]) == 70
    err = capsys.readouterr().err
    assert "attempt 4 ended: stalled; waiting for the next" in err
    assert "error: run 'cat': ended without a result: " in err
    assert told in err
    assert (tmp_path / "out" / "end.json").is_file(), "what the run left is fetched"


@pytest.mark.parametrize(
    ("claim", "status", "asked"),
    [
        ({}, 200, 0),
        ({"uid": "7", "namespace": ""}, 200, 0),  # of a machine
        ({"uid": "9", "namespace": "default"}, 200, 2),  # of another cluster
        ({"uid": "7", "namespace": "default"}, 404, 2),  # of another cluster, or gone before
        ({"uid": "7", "namespace": "default"}, 403, 1),  # and not again for a while
    ],
)
def test_a_cluster_that_knows_nothing_of_a_run_ends_no_fetch(
    server: Server, claim: dict[str, Any], status: int, asked: int
) -> None:
    server.says(f"GET {JOBS}/cat", (status, {**job("7"), "status": FAILED}))
    end = JobEnd("", "cat")
    assert [end.reason(claim), end.reason(claim)] == ["", ""]
    assert server.asked.count(f"GET {JOBS}/cat") == asked


def test_no_kubeconfig_ends_no_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert JobEnd("", "cat").reason({"uid": "7", "namespace": "default"}) == ""


def test_a_run_that_is_not_there_is_gone(server: Server) -> None:
    with pytest.raises(NotFound):
        Kubernetes().find("cat")
    assert clusterruns._left(Kubernetes(), "cat", "1") is None
