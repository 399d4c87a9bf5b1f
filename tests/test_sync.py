"""The uploader against stores that fail: nothing lost, nothing twice, an end in bounded time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import claims, commits, layout, sync
from jobs.errors import Unavailable
from jobs.outbox import Outbox, write_whole
from jobs.rows import known_rows
from jobs.stores import FileStore, Progress, Stored, unwatched


class Flaky(FileStore):
    """Fails its first `failures` puts, then works."""

    failures = 0

    def put(self, key: str, path: Path, progress: Progress = unwatched) -> Stored:
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionResetError(f"reset while sending {key}")
        return super().put(key, path, progress)


@pytest.fixture
def store(tmp_path: Path) -> Flaky:
    return Flaky(tmp_path / "store")


@pytest.fixture
def uploader(store: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sync.Uploader:
    monkeypatch.setattr(sync, "FIRST_RETRY_SECONDS", 0.001)
    claim = claims.take_claim(store, "run", cluster="", namespace="", uid="u")
    return sync.Uploader(store, "run", Outbox(tmp_path / "work"), claim, deadline_seconds=30)


def paint(outbox: Outbox, line: int) -> None:
    row = {"line": line, "image": 0, "prompt": "x"}
    outbox.picture(layout.picture_name(line, 0), b"png %d" % line, row)


def manifest(store: FileStore) -> list[int]:
    return [json.loads(row)["line"] for row in known_rows(store, "run")]


def checkpoint(outbox: Outbox, step: int) -> None:
    draft = outbox.draft(step)
    (draft / "state").write_bytes(b"s" * step)
    outbox.publish(draft)


def test_the_result_tells_how_long_pictures_took_to_send(
    uploader: sync.Uploader, store: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = uploader.outbox
    clock = iter(range(0, 10**6, 7))
    monkeypatch.setattr(sync.time, "monotonic", lambda: next(clock))
    paint(outbox, 7)
    for kind, split in (("infer", {"split_s": {"start": 1.5}}), ("train", {})):
        write_whole(outbox.root / layout.RESULT, json.dumps({"kind": kind, **split}).encode())
        uploader.finish()
        found = json.loads(store.read(layout.key("run", layout.RESULT)))
        assert found.keys() == {"kind", *split}
        if split:
            assert found["split_s"]["start"] == 1.5
            assert found["split_s"]["upload"] >= 7


def test_everything_arrives_and_leaves_the_outbox(uploader: sync.Uploader, store: Flaky) -> None:
    outbox = uploader.outbox
    checkpoint(outbox, 20)
    paint(outbox, 7)
    outbox.append(layout.METRICS, {"step": 1})
    uploader.cycle()
    assert commits.committed_steps(store, "run") == [20]
    assert manifest(store) == [7]
    assert store.read("run/images/00007-00.png") == b"png 7"
    outbox.append(layout.METRICS, {"step": 2})
    (outbox.root / layout.RESULT).write_text("{}")
    assert not list(store.list("run/result.json"))
    uploader.finish()
    assert [json.loads(r)["step"] for r in store.read("run/metrics.jsonl").splitlines()] == [1, 2]
    assert store.read("run/result.json") == b"{}"
    left = [p for p in outbox.root.rglob("*") if p.is_file()]
    assert {p.name for p in left} == {layout.METRICS, layout.RESULT}


def test_a_store_that_fails_for_a_while_is_retried(uploader: sync.Uploader, store: Flaky) -> None:
    checkpoint(uploader.outbox, 20)
    paint(uploader.outbox, 3)
    store.failures = 5
    uploader.cycle()
    assert commits.committed_steps(store, "run") == [20]
    assert manifest(store) == [3]


def test_a_store_that_stays_away_ends_it_with_the_reason(
    uploader: sync.Uploader, store: Flaky
) -> None:
    checkpoint(uploader.outbox, 20)
    store.failures = 10**9
    uploader.deadline_seconds = 0.05
    with pytest.raises(
        Unavailable, match=r"commit of step-00000020: reset while sending .*gave up"
    ):
        uploader.cycle()
    assert commits.committed_steps(store, "run") == []
    assert (uploader.outbox.root / "checkpoints" / "step-00000020" / "state").exists()


def test_the_picture_manifest_is_in_order_and_goes_on(
    uploader: sync.Uploader, store: Flaky, tmp_path: Path
) -> None:
    for line in (12, 3):
        paint(uploader.outbox, line)
        uploader.cycle()
    claim = claims.take_claim(store, "run", cluster="", namespace="", uid="u")
    after = sync.Uploader(store, "run", Outbox(tmp_path / "new"), claim, 30)
    after.recall()
    paint(after.outbox, 1)
    after.cycle()
    assert manifest(store) == [1, 3, 12]
    paint(uploader.outbox, 99)  # the attempt before, which does not know that it is over
    with pytest.raises(Unavailable, match="taken over"):
        uploader.cycle()
    assert manifest(store) == [1, 3, 12]


def test_a_picture_that_is_painted_again_has_one_row(uploader: sync.Uploader, store: Flaky) -> None:
    """Validation pictures between the last commit and a kill are."""
    for seconds in (1.5, 2.5):
        row = {"line": 1, "image": 0, "step": 20, "seconds": seconds}
        uploader.outbox.picture("step-00000020-00.png", b"png", row)
        uploader.cycle()
    assert [json.loads(row)["seconds"] for row in known_rows(store, "run")] == [2.5]


def test_half_written_things_are_not_seen(uploader: sync.Uploader, store: Flaky) -> None:
    draft = uploader.outbox.draft(20)
    (draft / "state").write_bytes(b"half")
    images = uploader.outbox.root / "images"
    images.mkdir(parents=True)
    (images / ".part-00001-00.png").write_bytes(b"half")
    (uploader.outbox.root / "rows").mkdir()
    (uploader.outbox.root / "rows" / ".part-00001-00.png.json").write_bytes(b"{")
    uploader.cycle()
    assert [e.key for e in store.list("run/")] == ["run/claim.json"]


def test_an_overtaken_attempt_leaves_records_and_result_alone(
    uploader: sync.Uploader, store: Flaky
) -> None:
    claims.take_claim(store, "run", cluster="", namespace="", uid="u")
    store.write("run/result.json", b"new")
    store.write("run/metrics.jsonl", b"new")
    uploader.outbox.append(layout.METRICS, {"step": 1})
    with pytest.raises(Unavailable, match="taken over"):
        uploader.cycle()
    (uploader.outbox.root / layout.METRICS).unlink()
    (uploader.outbox.root / layout.RESULT).write_text("{}")
    with pytest.raises(Unavailable, match="taken over"):
        uploader.finish()
    assert store.read("run/result.json") == b"new"
    assert store.read("run/metrics.jsonl") == b"new"


def test_a_picture_that_comes_back_changed_is_not_in_the_manifest(
    uploader: sync.Uploader, store: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "sha256", lambda key: "0" * 64)
    uploader.deadline_seconds = 0.01
    paint(uploader.outbox, 1)
    with pytest.raises(Unavailable, match="other bytes"):
        uploader.cycle()
    assert manifest(store) == []
