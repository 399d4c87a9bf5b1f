"""What an attempt finds: no leftovers, the newest whole state, or a line that says why not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import __version__, attempt, commits, layout, results
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, PicturesFailed, Unavailable
from jobs.outbox import Outbox
from jobs.specs import InferSpec, PromptRow, TrainSpec
from jobs.stopping import StopRequest
from jobs.stores import FileStore

TRAIN = TrainSpec(model="tiny", data="tiny")


def prepared(env: Environment) -> attempt.Attempt:
    return attempt.prepare(env, TRAIN, StopRequest())


def commit(store: FileStore, tmp_path: Path, step: int) -> str:
    folder = tmp_path / f"files-{step}"
    folder.mkdir()
    (folder / "state").write_bytes(b"%d" % step)
    prefix = f"r/checkpoints/{layout.step_name(step)}"
    commits.commit(store, prefix, folder)
    return prefix


def test_leftovers_of_the_attempt_before_are_gone(env: Environment) -> None:
    outbox = Outbox(env.work)
    outbox.end(0)
    outbox.fail(0, 78, "stale")
    outbox.summarise(0, {"kind": "train"})
    outbox.append(layout.METRICS, {"step": 1})
    outbox.beat(0)
    (outbox.draft(3) / "state").write_bytes(b"half")
    for name in ("stop", "done", "uploader-reason"):
        (env.work / name).write_text("78 stale")
    (env.work / "encoded").mkdir()
    (env.work / "encoded" / "ready-1").touch()
    (env.work / "restored" / "step-00000009").mkdir(parents=True)
    kept = env.work / "models" / "tiny-1"
    kept.mkdir(parents=True)
    prepared(env)
    assert kept.is_dir()
    left = {p.name for p in env.work.iterdir()}
    assert left == {"models", "owner.json"}


def test_the_same_spec_goes_on_under_another_submission(env: Environment) -> None:
    prepared(env)
    again = dataclasses.replace(env, uid="another")
    assert prepared(again).claim.epoch == 2
    assert prepared(again).claim.uid == "another"
    other = TRAIN.model_copy(update={"seed": 7})
    with pytest.raises(BadSpec, match=r"belong to another submission \(another in a cluster\)"):
        attempt.prepare(dataclasses.replace(env, uid="third"), other, StopRequest())
    forked = other.model_copy(update={"fork": True})
    assert attempt.prepare(dataclasses.replace(env, uid="third"), forked, StopRequest())


def test_who_has_lost_the_run_does_not_take_it_back(env: Environment) -> None:
    """Else two Jobs that live would take it from each other until both have failed."""
    prepared(env)
    second = dataclasses.replace(env, uid="second")
    prepared(second)
    prepared(second)
    with pytest.raises(BadSpec, match=r"another submission \(second in a cluster\)"):
        prepared(env)
    assert prepared(second).claim.epoch == 4


@pytest.mark.parametrize("text", [b"half a", b"[]", b'{"spec": {"kind": "walk"}}', b"{}"])
def test_a_record_that_cannot_be_read_is_nobodys_spec(
    env: Environment, store: FileStore, text: bytes
) -> None:
    prepared(env)
    store.write(f"r/{layout.SPEC}", text)
    with pytest.raises(BadSpec, match="or --fork a training, or choose another name"):
        prepared(dataclasses.replace(env, uid="another"))


def test_a_record_without_a_key_of_today_is_of_the_same_spec(
    env: Environment, store: FileStore
) -> None:
    prepared(env)
    record = json.loads(store.read(f"r/{layout.SPEC}"))
    del record["spec"]["snr_gamma"]
    store.write(f"r/{layout.SPEC}", json.dumps(record).encode())
    assert prepared(dataclasses.replace(env, uid="another")).claim.epoch == 2


def test_a_submission_that_has_left_only_its_claim_holds_nothing(
    env: Environment, store: FileStore, tmp_path: Path
) -> None:
    prepared(env)
    store.delete(f"r/{layout.SPEC}")
    assert prepared(dataclasses.replace(env, uid="another")).claim.epoch == 2
    store.delete(f"r/{layout.SPEC}")
    commit(store, tmp_path, 20)
    with pytest.raises(BadSpec, match="another submission"):
        prepared(dataclasses.replace(env, uid="third"))


def test_a_run_that_is_taken_over_meanwhile_keeps_the_new_ones_record(
    env: Environment, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = attempt._restore, TRAIN.model_copy(update={"seed": 7})

    def late(first: attempt.Attempt) -> None:
        monkeypatch.setattr(attempt, "_restore", real)
        attempt.prepare(dataclasses.replace(env, uid="another"), other, StopRequest())
        real(first)

    monkeypatch.setattr(attempt, "_restore", late)
    with pytest.raises(Unavailable, match="taken over"):
        prepared(env)
    assert json.loads(store.read(f"r/{layout.SPEC}"))["spec"]["seed"] == 7


def test_the_claim_waits_for_a_store_that_is_away(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> bytes:
        raise OSError("away")

    prepared(env)
    monkeypatch.setattr(FileStore, "read", away)
    stop = StopRequest()
    stop.since = 0.0
    with pytest.raises(Unavailable, match=r"spec\.json: away"):
        attempt.prepare(env, TRAIN, stop)


def left_behind(env: Environment, step: int) -> None:
    """Leave a checkpoint in the outbox, as an attempt that was killed before its upload does."""
    draft = Outbox(env.work).draft(step)
    (draft / "state").write_bytes(b"%d" % step)
    Outbox(env.work).publish(draft)
    Outbox(env.work).append(layout.METRICS, {"step": step})
    Outbox(env.work).append(layout.METRICS, {"step": step + 1})


def test_what_the_attempt_before_had_finished_is_sent_and_gone_on_from(
    env: Environment, store: FileStore
) -> None:
    prepared(env)
    left_behind(env, 40)
    again = prepared(env)
    assert commits.committed_steps(store, "r") == [40]
    assert again.restored == 40
    rows = [json.loads(row) for row in (again.outbox.root / layout.METRICS).open()]
    assert rows == [{"step": 40}]


def test_leftovers_of_an_older_attempt_are_not_sent(env: Environment, store: FileStore) -> None:
    prepared(env)
    left_behind(env, 40)
    elsewhere = dataclasses.replace(env, work=env.work.with_name("other-node"))
    prepared(elsewhere)
    assert prepared(env).restored == 0
    assert commits.committed_steps(store, "r") == []


def test_the_newest_state_is_restored_with_the_metrics_up_to_it(
    env: Environment, store: FileStore, tmp_path: Path
) -> None:
    commit(store, tmp_path, 10)
    commit(store, tmp_path, 20)
    rows = [json.dumps({"step": n}) for n in (5, 15, 20, 25)]
    junk = ["{half", "[]", "{}", '{"step": "x"}']
    store.write("r/metrics.jsonl", "\n".join([*rows, *junk]).encode())
    found = prepared(env)
    assert found.restored == 20
    assert (env.work / "restored" / "step-00000020" / "state").read_bytes() == b"20"
    lines = (found.outbox.root / layout.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 15, 20]
    record = json.loads(store.read("r/spec.json"))
    assert (record["attempts"], record["versions"]["jobs"]) == (1, __version__)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
def test_a_damaged_state_is_passed_over_for_the_one_before(
    env: Environment,
    store: FileStore,
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit(store, tmp_path, 10)
    newest = commit(store, tmp_path, 20)
    if damage == "truncated":
        store.write(f"{newest}/state", b"2")
    elif damage == "flipped":
        store.write(f"{newest}/state", b"21")
    elif damage == "missing":
        store.delete(f"{newest}/state")
    else:
        store.write(f"{newest}/{layout.MANIFEST}", b"{}")
    found = prepared(env)
    assert found.restored == 10
    assert "damaged=step-00000020" in caplog.text
    assert "older step" in caplog.text
    assert found.progress() == 10, "the damaged step must not count as progress"
    assert [p.name for p in (env.work / "restored").iterdir()] == ["step-00000010"]


def test_a_byte_that_was_flipped_on_its_way_costs_no_checkpoint(
    env: Environment, store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, tmp_path, 10)
    newest = commit(store, tmp_path, 20)
    real, flipped = FileStore.get, []

    def flip(self: FileStore, key: str, path: Path, *rest: Any) -> str:
        digest = real(self, key, path, *rest)
        if key == f"{newest}/state" and not flipped:
            flipped.append(path.write_bytes(b"21"))
            return "0" * 64
        return digest

    monkeypatch.setattr(FileStore, "get", flip)
    found = prepared(env)
    assert (found.restored, flipped) == (20, [2])
    assert (env.work / "restored" / "step-00000020" / "state").read_bytes() == b"20"
    assert commits.committed_steps(store, "r") == [10, 20]


def test_a_run_without_a_whole_state_is_not_started_over(
    env: Environment, store: FileStore, tmp_path: Path
) -> None:
    store.delete(f"{commit(store, tmp_path, 10)}/state")
    with pytest.raises(BadData, match="no committed step is whole"):
        prepared(env)
    assert commits.committed_steps(store, "r") == [10]


def test_a_result_with_failed_pictures_is_no_success(env: Environment, store: FileStore) -> None:
    spec = InferSpec(prompts=(PromptRow(line=1, prompt="x"),))
    found = attempt.prepare(env, spec, StopRequest())
    assert not results.finished(found)
    store.write("r/result.json", b'{"failed": [3, 5]}')
    with pytest.raises(PicturesFailed, match="3, 5"):
        results.finished(found)
    store.write("r/result.json", b'{"failed": []}')
    assert results.finished(found)


def test_a_stop_ends_the_wait_for_a_store_that_is_away(env: Environment) -> None:
    stop = StopRequest(since=1.0)
    Path(env.store).write_bytes(b"a file where the store was")
    with pytest.raises(Unavailable, match="claim"):
        attempt.prepare(env, TRAIN, stop)
