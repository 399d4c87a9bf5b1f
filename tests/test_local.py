"""The local backend with a stand-in for the supervisor: real processes, signals and locks."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from standin import PROGRAM, launch, start

from jobs.specs import TrainSpec
from launcher.backends import local, localproc, localrun
from launcher.backends.localrun import Files
from launcher.errors import Misconfigured, NameTaken
from launcher.plan import plan
from launcher.settings import Target

SUBMIT = ("submit", "train", "--backend", "local")
SLOW = {"STANDIN_SECONDS": "0.3"}


def planned(root: Path, name="run", workers=1, retry=30, **spec):
    target = Target(backend="local", store=str(root), store_deadline_minutes=retry)
    wanted = TrainSpec(**{"steps": 4, "precision": "fp32"} | spec)
    return plan(wanted, target, name=name, npus=workers, cores=2)


def submit(root: Path, program=PROGRAM, **wanted):
    return local.submit(planned(root, **wanted), root, program=program)


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.05)
    return found


def ended(files: Files):
    until(lambda: not localrun.alive(files))
    return localrun.look(files)


def console(files: Files) -> str:
    return files.console.read_text()


def pid(files: Files) -> int:
    return int(until(lambda: files.pid.is_file() and files.pid.read_text().strip()))


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def test_a_run_ends_with_its_reason(place):
    started = submit(place / "runs")
    assert not started.resumed
    state = ended(started.files)
    assert (state.state, state.code) == ("succeeded", 0)
    assert state.reason == "results are committed and verified"
    assert not state.resumable


def test_the_supervisor_is_told_what_the_contract_says(place, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "7")
    monkeypatch.setenv("JOB_STRAY", "x")
    monkeypatch.setenv("STANDIN_CALLER", "kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    files = submit(place / "runs", workers=2).files
    ended(files)
    seen = json.loads((files.work / "environment.json").read_text())
    decided = planned(place / "runs", workers=2).environment
    assert {key: seen[key] for key in decided if key in seen} == {
        key: value for key, value in decided.items() if key.startswith("JOB_")
    }
    assert seen["JOB_UID"] == localrun.read(files).uid
    assert (seen["JOB_NAMESPACE"], seen["JOB_COMPLETION_INDEX"]) == ("", "0")
    assert (seen["JOB_WORK"], seen["TERMINATION_LOG"]) == (str(files.work), str(files.termination))
    assert seen["JOB_CACHE"] == str(place / "cache/ascend-diffusion-jobs/staged")
    assert seen["STANDIN_CALLER"] == "kept"
    assert "JOB_STRAY" not in seen


def test_the_supervisor_outlives_the_launcher_and_its_session(place):
    done = launch(place, *SUBMIT, "--name", "run", "--steps", "8", env=SLOW)
    assert (done.returncode, done.stdout) == (0, "run\n")
    files = Files(place / "runs/run")
    assert localrun.alive(files)
    assert os.getsid(pid(files)) == pid(files)
    assert ended(files).state == "succeeded"


def test_a_killed_run_goes_on_from_its_last_commit(place, monkeypatch):
    monkeypatch.setenv("STANDIN_SECONDS", "0.2")
    started = submit(place / "runs", steps=6)
    files = started.files
    uid = localrun.read(files).uid
    until(lambda: "step=2" in files.console.read_text())
    os.kill(pid(files), signal.SIGKILL)
    state = ended(files)
    assert (state.state, state.code, state.resumable) == ("interrupted", None, True)
    again = submit(place / "runs", steps=6)
    assert again.resumed
    assert again.offset > 0
    assert ended(files).state == "succeeded"
    second = files.console.read_bytes()[again.offset :].decode()
    assert second.startswith("attempt=2 restored=")
    assert "restored=0" not in second
    assert localrun.read(files).uid == uid


def test_workers_that_outlive_a_killed_supervisor_are_killed_before_it_resumes(place, monkeypatch):
    monkeypatch.setenv("STANDIN_CHILD", "1")
    monkeypatch.setenv("STANDIN_SECONDS", "0.3")
    files = submit(place / "runs", steps=100).files
    uid = localrun.read(files).uid
    until(lambda: "step=1" in console(files))
    os.kill(pid(files), signal.SIGKILL)
    ended(files)
    orphans = localproc.members(uid)
    assert len(orphans) == 1
    submit(place / "runs", steps=100)
    assert not orphans & localproc.members(uid)
    local.cancel(files, now=True)
    until(lambda: not localproc.members(uid))


@pytest.mark.parametrize("now", [False, True])
def test_cancel_kills_what_a_dead_supervisor_left(place, monkeypatch, now):
    monkeypatch.setenv("STANDIN_CHILD", "1")
    monkeypatch.setenv("STANDIN_SECONDS", "0.3")
    files = submit(place / "runs", steps=100).files
    uid = localrun.read(files).uid
    until(lambda: "step=1" in console(files))
    os.kill(pid(files), signal.SIGKILL)
    ended(files)
    assert localproc.members(uid)
    assert local.cancel(files, now=now)
    assert not localproc.members(uid)
    assert not local.cancel(files, now=now), "there is nothing left"
    assert localrun.look(files).state == "interrupted"


def test_cancel_lets_it_commit_and_the_same_submission_resumes(place, monkeypatch):
    monkeypatch.setenv("STANDIN_SECONDS", "0.1")
    files = submit(place / "runs", steps=8).files
    until(lambda: "step=1" in console(files))
    assert local.cancel(files)
    state = localrun.look(files)
    assert (state.state, state.code, state.resumable) == ("stopped", 75, True)
    assert state.reason.startswith("stopped on request: step")
    assert not local.cancel(files), "there is nothing left to stop"
    assert submit(place / "runs", steps=8).resumed
    assert ended(files).state == "succeeded"
    assert not list(files.local.glob("termination.*"))


def test_a_run_is_alive_by_its_lock_not_by_its_number(place, monkeypatch):
    """A process number is used again; signalling whoever has it now would hit a stranger."""
    files = submit(place / "runs").files
    ended(files)
    files.termination.unlink()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        files.pid.write_text(str(stranger.pid))
        assert localrun.look(files).state == "interrupted"
        assert not local.cancel(files)
        assert not local.cancel(files, now=True)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_glances_at_once_do_not_see_each_other(place):
    files = submit(place / "runs").files
    ended(files)
    with files.lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not localrun.alive(files)


def test_a_living_run_keeps_its_name(place, monkeypatch):
    monkeypatch.setenv("STANDIN_SECONDS", "5")
    files = submit(place / "runs").files
    with pytest.raises(NameTaken, match="'run': is running") as caught:
        submit(place / "runs")
    assert "launcher cancel run" in caught.value.hint
    local.cancel(files, now=True)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("0 results are committed and verified", "has succeeded"),
        ("65 bad data: x.png: not a picture", r"has failed for good \(65\): x.png: not a picture"),
        ("70 diverged: loss is nan", "for good"),
        ("74 pictures failed: 1 of 2", "for good"),
        ("78 bad spec: x", "for good"),
    ],
)
def test_a_finished_run_keeps_its_name(place, monkeypatch, end, told):
    monkeypatch.setenv("STANDIN_END", end)
    files = submit(place / "runs").files
    ended(files)
    before = files.plan.read_bytes(), files.termination.read_bytes()
    with pytest.raises(NameTaken, match=told):
        submit(place / "runs")
    assert before == (files.plan.read_bytes(), files.termination.read_bytes())


@pytest.mark.parametrize("code", [1, 69, 75, 79, 137])
def test_a_run_that_may_be_retried_is(place, monkeypatch, code):
    monkeypatch.setenv("STANDIN_END", f"{code} whatever it was")
    files = submit(place / "runs").files
    assert ended(files).resumable
    monkeypatch.delenv("STANDIN_END")
    assert submit(place / "runs").resumed
    assert ended(files).state == "succeeded"


def test_another_spec_does_not_resume_a_run(place, monkeypatch):
    monkeypatch.setenv("STANDIN_END", "75 stopped: on request")
    files = submit(place / "runs").files
    ended(files)
    before = files.plan.read_bytes()
    with pytest.raises(NameTaken) as caught:
        submit(place / "runs", steps=5, workers=2)
    assert "npus is 1, not 2; steps is 4, not 5" in caught.value.text
    assert files.plan.read_bytes() == before


@pytest.mark.parametrize("end", ["75 stopped: on request", "70 diverged: step 3: the loss is nan"])
def test_a_fork_goes_on_with_other_values(place, monkeypatch, end):
    monkeypatch.setenv("STANDIN_END", end)
    files = submit(place / "runs").files
    ended(files)
    monkeypatch.delenv("STANDIN_END")
    with pytest.raises(NameTaken):
        submit(place / "runs", learning_rate=1e-6)
    if end.startswith("70"):
        with pytest.raises(NameTaken, match="has failed for good"):
            submit(place / "runs", fork=True)  # with the same values it fails again
    assert submit(place / "runs", learning_rate=1e-6, fork=True).resumed
    assert ended(files).state == "succeeded"
    assert localrun.read(files).spec()["learning_rate"] == 1e-6


def test_a_fork_goes_on_with_data_that_was_changed(place, monkeypatch):
    monkeypatch.setenv("STANDIN_END", "65 bad data: changed since step-00000002")
    ended(submit(place / "runs").files)
    monkeypatch.delenv("STANDIN_END")
    with pytest.raises(NameTaken, match="has failed for good") as caught:
        submit(place / "runs")
    assert "go on by --fork" in caught.value.hint
    assert submit(place / "runs", fork=True).resumed


def test_a_fork_has_the_store_of_the_run_and_a_run_that_succeeded_is_none(place, monkeypatch):
    monkeypatch.setenv("STANDIN_END", "75 stopped: on request")
    files = submit(place / "runs").files
    ended(files)
    wanted = planned(place / "runs", steps=5, fork=True)
    elsewhere = replace(wanted, environment={**wanted.environment, "JOB_STORE": "s3://b/p"})
    with pytest.raises(NameTaken, match="which --fork cannot change"):
        local.submit(elsewhere, place / "runs", program=PROGRAM)
    monkeypatch.delenv("STANDIN_END")
    assert submit(place / "runs", steps=5, fork=True).resumed
    ended(files)
    with pytest.raises(NameTaken, match="has succeeded"):
        submit(place / "runs", steps=6, fork=True)


def test_another_store_does_not_resume_a_run_and_a_moved_folder_does(place, monkeypatch):
    monkeypatch.setenv("STANDIN_END", "75 stopped: on request")
    ended(submit(place / "runs").files)
    (place / "runs").rename(place / "moved")
    wanted = planned(place / "moved")
    elsewhere = {**wanted.environment, "JOB_STORE": "s3://bucket/runs"}
    with pytest.raises(NameTaken, match='store is "", not "s3://bucket/runs"'):
        local.submit(replace(wanted, environment=elsewhere), place / "moved", program=PROGRAM)
    monkeypatch.delenv("STANDIN_END")
    again = submit(place / "moved")
    assert again.resumed
    assert ended(again.files).state == "succeeded"


def test_a_folder_of_another_origin_keeps_its_name(place):
    (place / "runs/run").mkdir(parents=True)
    with pytest.raises(NameTaken, match="was not submitted from here"):
        submit(place / "runs")
    assert tree(place) == {"runs", "runs/run"}


def test_one_of_two_submissions_at_once_wins(place):
    wanted = (*SUBMIT, "--name", "run", "--steps", "9")
    both = [start(place, *wanted, env=SLOW) for _ in range(2)]
    results = [(process.communicate(timeout=60), process.returncode) for process in both]
    assert sorted(code for _, code in results) == [0, 73]
    assert sorted(out for (out, _), _ in results) == ["", "run\n"]
    assert not list((place / "runs").glob(".part-*"))


def test_a_name_that_is_taken_in_the_last_moment_leaves_nothing(place):
    (place / "runs/run/local").mkdir(parents=True)
    with pytest.raises(NameTaken, match="at the same moment"):
        local._create(planned(place / "runs"), Files(place / "runs/run"), PROGRAM)
    assert tree(place) == {"runs", "runs/run", "runs/run/local"}


def test_a_program_that_cannot_start_leaves_nothing(place):
    with pytest.raises(Misconfigured, match="no-such-program"):
        submit(place / "deep/runs", program=("/no-such-program",))
    assert tree(place) == set()


def test_a_resumption_that_cannot_start_leaves_the_run_as_it_was(place, monkeypatch):
    monkeypatch.setenv("STANDIN_END", "75 stopped: on request")
    files = submit(place / "runs").files
    ended(files)
    before = tree(place) - {"runs/run/local/pid"}
    texts = files.plan.read_bytes(), files.termination.read_bytes()
    with pytest.raises(Misconfigured, match="no-such-program"):
        submit(place / "runs", program=("/no-such-program",), retry=31)
    assert tree(place) == before
    assert texts == (files.plan.read_bytes(), files.termination.read_bytes())
    assert localrun.look(files).state == "stopped"


def test_a_store_that_is_a_file_is_refused(place):
    (place / "runs").write_text("")
    with pytest.raises(Misconfigured, match="runs"):
        submit(place / "runs")
    with pytest.raises(Misconfigured, match="runs"):
        submit(place / "runs/below")


def mounted(place, options, *arguments):
    """Submit into a small file system of its own, which only this submission sees."""
    (place / "runs").mkdir()
    script = f'mount -t tmpfs -o {options} none runs && exec "$0" "$@"'
    before = ("unshare", "-m", "sh", "-c", script)
    # The listing comes from inside, since the mount is gone with the process.
    return launch(place, *arguments, before=before)


@pytest.fixture(scope="module")
def mounts(missing):
    """Skip where no file system can be mounted."""
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        missing("chaos", "needs root and mount namespaces")


def test_a_full_disk_is_told(place, mounts):
    done = mounted(place, "size=4k", *SUBMIT)
    assert done.returncode == 69
    assert f"error: store {place}/runs: the disk is full\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_read_only_store_is_told(place, mounts):
    done = mounted(place, "ro", *SUBMIT)
    assert done.returncode == 77
    assert f"error: store {place}/runs: cannot be written: " in done.stderr
    assert done.stdout == ""


def test_a_log_is_followed_to_its_end(place, monkeypatch):
    monkeypatch.setenv("STANDIN_SECONDS", "0.1")
    files = submit(place / "runs", steps=5).files
    followed = b"".join(localrun.log(files, follow=True))
    assert followed == files.console.read_bytes()
    assert followed.endswith(b"exit=0 results are committed and verified\n")
    assert not localrun.alive(files)


def test_the_tail_begins_at_a_line(place):
    files = Files(place / "runs/run")
    files.local.mkdir(parents=True)
    files.console.write_bytes(b"one\ntwo\nthree\n")
    for lines, text in ((0, b""), (1, b"three\n"), (2, b"two\nthree\n"), (9, b"one\ntwo\nthree\n")):
        offset = localrun.tail(files, lines)
        assert files.console.read_bytes()[offset:] == text


def test_the_default_program_is_the_supervisor():
    assert list(local.PROGRAM) == [sys.executable, "-m", "jobs.runtime"]
