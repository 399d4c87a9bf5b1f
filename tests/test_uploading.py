"""The uploader seen from the supervisor: started again when killed, believed when it speaks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import claims, commits, layout, uploading
from jobs.attempt import Attempt
from jobs.environment import Environment
from jobs.errors import JobError, Unavailable
from jobs.specs import TrainSpec, to_json
from jobs.stopping import StopRequest
from jobs.stores import FileStore
from jobs.uploading import Uploading, upload_seconds


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    spec = TrainSpec(model="tiny", data="tiny")
    variables = {
        "JOB_SPEC": to_json(spec), "JOB_RUN": "r", "JOB_UID": "u", "JOB_DEVICE": "CPU",
        "JOB_STORE": str(tmp_path / "store"), "JOB_WORK": str(tmp_path / "work"),
        "JOB_STORE_DEADLINE_SECONDS": "1", "JOB_GRACE_SECONDS": "100",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    env = Environment.read()
    env.work.mkdir()
    store = FileStore(tmp_path / "store")
    claim = claims.take_claim(store, "r", cluster="", namespace="", uid="u")
    return Attempt(env, spec, store, claim, StopRequest())


def publish(attempt: Attempt, step: int) -> None:
    draft = attempt.outbox.draft(step)
    (draft / "state").write_bytes(b"x" * 1000)
    attempt.outbox.publish(draft)


def test_an_uploader_that_is_killed_is_started_again(attempt: Attempt) -> None:
    uploader = Uploading(attempt)
    try:
        first = uploader.process.pid
        os.kill(first, signal.SIGKILL)
        uploader.process.wait()
        uploader.check()
        assert uploader.process.pid != first
        publish(attempt, 20)
        uploader.drain()
    finally:
        uploader.end()
    assert commits.committed_steps(attempt.store, "r") == [20]


def test_one_that_is_killed_again_and_again_is_a_failure(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "PROGRAM", ("/bin/false",))
    uploader = Uploading(attempt)
    for _ in range(uploading.MOST_RESTARTS):
        uploader.process.wait()
        uploader.check()
    uploader.process.wait()
    with pytest.raises(JobError, match="6th time"):
        uploader.check()


def test_one_that_gives_a_reason_is_believed(attempt: Attempt) -> None:
    attempt.store.write("r/" + layout.CLAIM, b"somebody else's")
    publish(attempt, 20)
    uploader = Uploading(attempt)
    try:
        with pytest.raises(Unavailable, match="taken over"):
            uploader.drain()
    finally:
        uploader.end()


def test_one_that_could_not_give_a_reason_is_believed_by_its_code(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "PROGRAM", ("/bin/sh", "-c", "exit 69"))
    free = iter((1 << 10, 1 << 30))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=next(free)))
    for words in ("No space left on device: .*work", "its last line tells"):
        uploader = Uploading(attempt)
        uploader.process.wait()
        with pytest.raises(Unavailable, match=f"the uploader left no reason; {words}$"):
            uploader.check()


def test_the_grace_period_is_shared_as_measured(attempt: Attempt) -> None:
    assert upload_seconds(attempt) == 50
    attempt.outbox.rate.write_text(json.dumps({"bytes": 1, "seconds": 20}))
    assert upload_seconds(attempt) == pytest.approx(1.3 * 20 + 2)
    attempt.outbox.rate.write_text(json.dumps({"bytes": 1, "seconds": 500}))
    assert upload_seconds(attempt) == 90
    attempt.outbox.rate.write_text("{}")
    assert upload_seconds(attempt) == 50
