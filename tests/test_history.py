"""What is told of the attempts of a run: also of those that could tell nothing themselves."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs import attempt, history, layout, verdict
from jobs.environment import Environment
from jobs.specs import TrainSpec
from jobs.stopping import StopRequest
from jobs.stores import FileStore

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def begun(env: Environment, monkeypatch: pytest.MonkeyPatch, minutes: int) -> attempt.Attempt:
    monkeypatch.setattr(attempt, "now", lambda: START + timedelta(minutes=minutes))
    spec = TrainSpec(model="tiny", data="tiny")
    return attempt.prepare(env, spec, StopRequest())


def recorded(store: FileStore) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(store.read("r/spec.json"))["history"]
    return found


def test_attempts_that_were_killed_or_failed_are_told_of(
    env: Environment, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(env, monkeypatch, 0)
    assert recorded(store) == [{"attempt": 1, "began": "2026-01-02T03:04:05+00:00"}]
    row = {"step": 57, "attempt": 1, "time": "2026-01-02T03:09:05Z"}
    store.write("r/metrics.jsonl", json.dumps(row).encode() + b'\n{"step": 58, "att')
    stalled = begun(env, monkeypatch, 10)  # the first was killed, and left no word
    verdict.tell_end(stalled, 79, "stalled: worker 0: silent")
    newest = begun(env, monkeypatch, 30)
    first, second, third = recorded(store)
    assert first.items() >= {"attempt": 1, "step": 57, "seen": "2026-01-02T03:09:05Z"}.items()
    assert "code" not in first
    assert (second["code"], second["reason"]) == (79, "stalled: worker 0: silent")
    assert second["ended"] >= "2026"
    assert "step" not in second, "it has logged none"
    assert third == {"attempt": 3, "began": "2026-01-02T03:34:05+00:00"}
    assert newest.history == [first, second, third]


def test_the_result_tells_what_the_whole_run_took(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(env, monkeypatch, 0)
    again = begun(env, monkeypatch, 10)
    again.outbox.summarise(0, {"kind": "train", "loss": 0.5, "compile_s": 3.0})
    monkeypatch.setattr(verdict, "now", lambda: START + timedelta(minutes=15))
    verdict.conclude(again)
    result = json.loads((again.outbox.root / layout.RESULT).read_bytes())
    assert (result["attempts"], result["wall_s"], result["compile_s"]) == (2, 900.0, 3.0)


def test_a_run_of_an_older_version_has_the_attempts_that_are_known(
    env: Environment, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(env, monkeypatch, 0)
    record = json.loads(store.read("r/spec.json"))
    for damaged in ({}, {"history": "x"}, {"history": [7, {"attempt": "x"}, {}]}):
        del record["history"]
        store.write("r/spec.json", json.dumps(record | damaged).encode())
        found = begun(env, monkeypatch, 5)
        record = json.loads(store.read("r/spec.json"))
        assert [row["attempt"] for row in recorded(store)] == [found.claim.epoch]
        assert history.wall_seconds(found.history, START) is None


def test_of_a_thousand_attempts_the_first_and_the_newest_are_told(store: FileStore) -> None:
    rows = [{"attempt": n, "began": "", "ended": ""} for n in range(1, 1001)]
    store.write("r/spec.json", json.dumps({"history": rows}).encode())
    numbers = [row["attempt"] for row in history.history(store, "r", 1001, START)]
    assert numbers == [1, *range(1003 - history.KEPT, 1002)]
