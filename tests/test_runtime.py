"""The supervisor's words and codes; its life with real workers is in test_main_job.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import cgroups, msrun, verdict, working
from jobs.attempt import Attempt
from jobs.cgroups import GIB, Memory
from jobs.claims import Claim
from jobs.environment import Environment
from jobs.errors import (
    BY_CODE,
    BadSpec,
    JobError,
    Killed,
    PicturesFailed,
    Stalled,
    Stopped,
    Unavailable,
)
from jobs.outbox import Outbox
from jobs.specs import TrainSpec, to_json
from jobs.stopping import StopRequest
from jobs.stores import FileStore

GOOD = {
    "JOB_SPEC": to_json(TrainSpec(model="tiny", data="tiny")),
    "JOB_RUN": "r",
    "JOB_UID": "u",
    "JOB_DEVICE": "CPU",
}


def supervise(tmp_path: Path, **changes: str | None) -> tuple[int, str, str]:
    """Run the real supervisor; return exit code, output and termination message."""
    message = tmp_path / "termination"
    ours = {
        **GOOD,
        "JOB_STORE": str(tmp_path / "store"),
        "JOB_WORK": str(tmp_path / "work"),
        "TERMINATION_LOG": str(message),
        **changes,
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith("JOB_")}
    env |= {k: v for k, v in ours.items() if v is not None}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.runtime"], env=env, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr, message.read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"JOB_SPEC": None, "JOB_UID": ""}, "JOB_SPEC: missing; JOB_UID: missing"),
        ({"JOB_WORKERS": "0"}, "JOB_WORKERS: '0' is not a number of at least 1"),
        ({"JOB_GRACE_SECONDS": "soon"}, "JOB_GRACE_SECONDS: 'soon'"),
        ({"JOB_DEVICE": "GPU"}, "'GPU' is neither Ascend nor CPU"),
        ({"JOB_NODES": "2"}, "are no address of node 0"),
        ({"JOB_SPEC": "{}"}, "spec"),
        ({"JOB_SPEC": '{"kind":"train","stesp":1}'}, "stesp: unknown key"),
        ({"JOB_STORE": "gs://bucket/x"}, "store 'gs://bucket/x'"),
        ({"JOB_STORE_CHECKSUM": "crc"}, "JOB_STORE_CHECKSUM: 'crc' is none of auto"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_78(
    tmp_path: Path, changes: dict[str, str | None], words: str
) -> None:
    code, output, message = supervise(tmp_path, **changes)
    assert code == 78
    assert message.startswith("78 bad spec: ")
    assert words in message
    assert message.count("\n") == 1
    assert "Traceback" not in output
    assert message.strip().partition(" ")[2] in output


def test_a_stop_is_heard_while_the_supervisor_still_imports(tmp_path: Path) -> None:
    ours = GOOD | {"JOB_STORE": str(tmp_path / "store"), "JOB_WORK": str(tmp_path / "work")}
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "jobs.runtime"],
        env={**os.environ, **ours}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith("| hashlib"):  # the first that follows the handler
            break
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 69
    assert "stopped on request" in output


def test_the_first_line_tells_versions_and_the_spec_but_no_secret(tmp_path: Path) -> None:
    code, output, _ = supervise(
        tmp_path, JOB_STORE="gs://bucket/x", AWS_SECRET_ACCESS_KEY="hush-hush"
    )
    first = output.splitlines()[0]
    assert code == 78
    assert " jobs=" in first
    assert " run=r kind=train spec=" in first
    assert "hush-hush" not in output


def test_a_run_of_another_submission_is_left_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    claim = Claim("c", "n", "somebody-else", 3).to_json()
    store.write("r/claim.json", claim)
    store.write("r/spec.json", b'{"sha256": "of another spec"}')
    code, _, message = supervise(tmp_path)
    assert code == 78
    assert "somebody-else" in message
    assert store.read("r/claim.json") == claim
    kept = ["r/claim.json", "r/spec.json"]
    assert [e.key for e in store.list("")] == kept, "and told nothing of our end"


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    FileStore(tmp_path / "store").write("r/result.json", b"{}")
    started = time.monotonic()
    code, output, message = supervise(tmp_path)
    assert code == 0
    assert message.startswith("0 ")
    assert "nothing is left to do" in output
    assert time.monotonic() - started < 30, "no worker may be started for it"
    end = json.loads(FileStore(tmp_path / "store").read("r/end.json"))
    assert (end["attempt"], end["code"], end["namespace"]) == (1, 0, "")


def test_how_an_attempt_ended_is_left_in_the_store(tmp_path: Path) -> None:
    spec = to_json(TrainSpec(model="tiny", data="s3://no-such-bucket/pictures"))
    dead = {"JOB_STORE_ENDPOINT": "http://127.0.0.1:9", "JOB_STORE_DEADLINE_SECONDS": "0.1"}
    code, _, message = supervise(tmp_path, JOB_SPEC=spec, JOB_NAMESPACE="team", **dead)
    assert code == 69
    end = json.loads(FileStore(tmp_path / "store").read("r/end.json"))
    assert message.strip() == f"69 {end['reason']}"
    assert (end["name"], end["namespace"]) == ("unavailable", "team")


def test_an_attempt_that_was_overtaken_tells_nothing_of_its_end(attempt: Attempt) -> None:
    attempt.store.write("r/claim.json", attempt.claim.to_json())
    verdict.tell_end(attempt, 75, "stopped: x")
    assert json.loads(attempt.store.read("r/end.json"))["reason"] == "stopped: x"
    attempt.store.write("r/claim.json", Claim("", "", "u", 2).to_json())
    verdict.tell_end(attempt, 79, "stalled: y")
    assert json.loads(attempt.store.read("r/end.json"))["reason"] == "stopped: x"


def test_a_store_that_is_away_does_not_hold_up_the_end(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "END_SECONDS", 0.1)
    held = threading.Event()
    monkeypatch.setattr(FileStore, "read", lambda *_: held.wait(30) or b"")
    started = time.monotonic()
    verdict.tell_end(attempt, 0, "")
    held.set()
    assert time.monotonic() - started < 5


def test_reasons_name_what_was_given_and_not_the_copy_of_this_node() -> None:
    spec = TrainSpec(model="s3://b/sdxl", data="tiny")
    staged = spec.model_copy(update={"model": "/cache/0123"})
    told = working.as_given("/cache/0123/unet: no such file", spec, staged)
    assert told == "s3://b/sdxl/unet: no such file"


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    spec = TrainSpec(model="tiny", data="tiny")
    env = Environment(
        spec="", run="r", store="", uid="u", work=tmp_path / "work", device="CPU", workers=2,
        stall_seconds=5,
    )  # fmt: skip
    claim = Claim("", "", "u", 1)
    env.work.mkdir()
    return Attempt(env, spec, FileStore(tmp_path / "store"), claim, StopRequest())


def test_the_end_of_the_workers_is_translated(attempt: Attempt) -> None:
    def end(ended: int) -> type[JobError]:
        with pytest.raises(JobError) as caught:
            verdict.judge(attempt, ended)
        assert caught.value.code in BY_CODE
        return type(caught.value)

    assert end(0) is JobError, "no result, no success"
    assert end(-9) is Killed
    assert end(-11) is JobError
    assert end(1) is JobError
    assert end(69) is Unavailable, "a worker on a full disk can leave no reason"
    attempt.stop.since = time.monotonic()
    assert end(75) is Unavailable, "nothing new was committed"
    for name in ("COMMITTED", "state"):
        attempt.store.write(f"r/checkpoints/step-00000007/{name}", b"")
    assert end(75) is Stopped
    attempt.outbox.fail(1, 75, "stopped after step 7")
    assert end(75) is Stopped
    attempt.outbox.fail(1, 74, "pictures of lines 3")
    assert end(0) is PicturesFailed
    attempt.outbox.fail(0, 78, "precision")
    assert end(1) is BadSpec, "the lowest rank speaks"


def test_a_stop_while_the_store_is_away_is_told_as_both(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(store: FileStore, key: str) -> bytes:
        raise OSError("no route")

    attempt.stop.since = time.monotonic()
    monkeypatch.setattr(FileStore, "read", away)
    with pytest.raises(Unavailable, match=r"stopped on request while the store was away: .*route"):
        verdict.judge(attempt, 0)


def test_what_the_kernel_killed_is_told_as_memory_whoever_noticed(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (Memory(GIB, GIB, kills) for kills in (1, 2))
    attempt.memory = before
    monkeypatch.setattr(cgroups, "read", lambda: after)
    for ended in (-9, 1, -11):
        with pytest.raises(Killed, match=r"out of memory \(peak 1.0 GiB of 1.0 GiB\): give more"):
            verdict.judge(attempt, ended)
    with pytest.raises(JobError, match="without a result"):
        verdict.judge(attempt, 0)  # an uploader that was started again harms nobody
    monkeypatch.setattr(cgroups, "read", lambda: before)
    with pytest.raises(Killed, match=r"as a rule for memory \(peak 1.0 GiB of 1.0 GiB\)"):
        verdict.judge(attempt, -9)


def test_a_full_disk_is_told_with_the_outage_that_filled_it(attempt: Attempt) -> None:
    attempt.outbox.fail(0, 69, "/scratch: No space left on device")
    with pytest.raises(Unavailable, match=r"No space left on device$"):
        verdict.raise_reasons(attempt)
    attempt.outbox.away.write_text(f"{time.time() - 600:.0f} reset by peer")
    with pytest.raises(Unavailable, match=r"device \(the store has been away for 60\d s: reset by"):
        verdict.raise_reasons(attempt)


def test_a_full_disk_is_told_where_nothing_could_be_written(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter((1 << 10, 1 << 30))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(Unavailable, match=r"left no reason; No space left on device: .*work$"):
        verdict.judge(attempt, 69)
    with pytest.raises(Unavailable, match=r"left no reason; see the workers' logs$"):
        verdict.judge(attempt, 69)


def test_success_needs_the_result_in_the_store(attempt: Attempt) -> None:
    attempt.store.write("r/result.json", b"{}")
    verdict.judge(attempt, 0)


def test_a_resumed_run_with_nothing_left_keeps_its_numbers(attempt: Attempt) -> None:
    row = {"step": 7, "loss": 0.25, "ms_per_step": 100.0, "img_s": 10.0}
    attempt.outbox.append("metrics.jsonl", row)
    attempt.outbox.summarise(0, {"kind": "train", "loss": None, "ms_per_step": None, "img_s": None})
    verdict.conclude(attempt)
    result = json.loads((attempt.outbox.root / "result.json").read_bytes())
    assert (result["loss"], result["ms_per_step"], result["img_s"]) == (0.25, 100.0, 10.0)
    attempt.outbox.summarise(0, {"kind": "train", "loss": 0.5, "ms_per_step": None, "img_s": None})
    verdict.conclude(attempt)
    result = json.loads((attempt.outbox.root / "result.json").read_bytes())
    assert (result["loss"], result["img_s"]) == (0.5, None), "its own numbers are not replaced"


def test_the_last_words_of_a_traceback_are_found(attempt: Attempt) -> None:
    attempt.logs.mkdir(parents=True)
    log = attempt.logs / "worker_1.log"
    log.write_text(
        "Traceback (most recent call last):\n  File x\nValueError: first\n\nDuring handling...\n"
        "Traceback (most recent call last):\n  File y\nRuntimeError: no memory left\n- C++ Stack\n"
    )
    assert verdict.last_words(attempt.logs) == "RuntimeError: no memory left (worker_1.log)"
    log.write_text("nothing of the kind")
    assert verdict.last_words(attempt.logs) == "see the workers' logs"


def test_a_silent_worker_is_stalled_and_a_beating_one_is_not(attempt: Attempt) -> None:
    outbox = Outbox(attempt.env.work)
    attempt.started = time.monotonic() - 100
    for rank in range(2):
        outbox.beat(rank)
    working.check_stall(attempt)
    old = time.time() - 60
    os.utime(attempt.env.work / "alive" / "1", (old, old))
    with pytest.raises(Stalled, match=r"worker 1: silent for (59|60|61) s, the limit is 5 s"):
        working.check_stall(attempt)
    attempt.logs.mkdir(parents=True)
    (attempt.logs / "worker_1.log").write_text("a line is a sign of life too")
    working.check_stall(attempt)
    attempt.started = time.monotonic()
    os.utime(attempt.logs / "worker_1.log", (old, old))
    working.check_stall(attempt)  # it has only just started


def test_the_worker_that_failed_is_read_from_msruns_words(tmp_path: Path) -> None:
    console = tmp_path / "msrun.log"
    process = subprocess.Popen(["sleep", "60"])
    workers = msrun.Msrun(process, console)  # type: ignore[arg-type]
    console.write_text("Start worker process with rank id:0\n")
    assert workers.failed() is None
    console.write_text("[ERROR] Worker process 71 exit with exception. Error code: -9.\n")
    assert workers.failed() == -9
    workers.kill()
    assert process.returncode == -9


def test_kill_takes_grandchildren_in_sessions_of_their_own(tmp_path: Path) -> None:
    sleep = "subprocess.Popen(['sleep', '60'], start_new_session=True)"
    script = f"import subprocess, time; {sleep}; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (tree := msrun.descendants(process.pid)):
        time.sleep(0.05)
    msrun.Msrun(process, tmp_path / "none").kill()  # type: ignore[arg-type]
    end = time.monotonic() + 5
    while Path(f"/proc/{tree[0]}/cmdline").exists() and time.monotonic() < end:
        if not Path(f"/proc/{tree[0]}/cmdline").read_bytes():  # a zombie has none
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{tree[0]}").exists()


def test_only_whole_lines_are_followed_and_frameworks_chatter_is_not(tmp_path: Path) -> None:
    import io

    out = io.StringIO()
    follower = msrun.Follower(tmp_path, out)
    (tmp_path / "worker_0.log").write_bytes(b"one\n[INFO] DISTRIBUTED(1) chatter\ntw")
    (tmp_path / "scheduler.log").write_bytes(b"not a worker\n")
    follower.copy()
    assert out.getvalue() == "[0] one\n"
    with (tmp_path / "worker_0.log").open("ab") as file:
        file.write("o \u00e9".encode())
    (tmp_path / "worker_1.log").write_bytes(b"other")
    follower.copy()
    assert out.getvalue() == "[0] one\n"
    follower.copy(last=True)
    assert out.getvalue() == "[0] one\n[0] two \u00e9\n[1] other\n"
