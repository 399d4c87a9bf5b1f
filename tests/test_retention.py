"""Retention: what may go is decided purely; what is pinned or newest never does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import commits, layout, retention
from jobs.stores import FileStore

STEPS = st.lists(st.integers(1, 500), max_size=30)


@given(STEPS, st.integers(0, 10), st.integers(0, 50), st.sets(st.integers(1, 500), max_size=5))
def test_the_newest_the_pinned_and_the_every_nth_stay(
    steps: list[int], last: int, every: int, pinned: set[int]
) -> None:
    gone = retention.doomed(steps, keep_last=last, keep_every=every, pinned=pinned)
    kept = set(steps) - set(gone)
    assert set(gone) <= set(steps)
    assert not set(gone) & pinned
    assert kept >= set(sorted(set(steps))[-last:]) if last else gone == []
    assert all(step % every for step in gone) if every else True
    if last:  # and nothing else stays
        allowed = {
            *sorted(set(steps))[-last:],
            *pinned,
            *(s for s in steps if every and s % every == 0),
        }
        assert kept <= allowed
    assert not steps or max(steps) in kept


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path / "store")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "state").write_bytes(b"abc")
    for step in (10, 20, 30):
        commits.commit(store, retention.checkpoint("run", step), folder)
    return store


def test_a_set_loses_its_marker_first(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(FileStore, "delete", lambda _self, key: deleted.append(key))
    retention.remove(store, retention.checkpoint("run", 10))
    assert deleted[0] == f"run/checkpoints/step-00000010/{layout.COMMITTED}"
    assert {key.rpartition("/")[2] for key in deleted} == {"COMMITTED", "MANIFEST.json", "state"}


def test_a_removed_set_is_gone_and_the_others_are_whole(store: FileStore) -> None:
    retention.remove(store, retention.checkpoint("run", 10))
    assert commits.committed_steps(store, "run") == [20, 30]
    assert not list(store.list("run/checkpoints/step-00000010"))
    commits.verify_set(store, retention.checkpoint("run", 20))


def test_pins(store: FileStore) -> None:
    retention.pin(store, "run", 10, on=True)
    assert retention.pinned(store, "run") == {10}
    assert commits.committed_steps(store, "run") == [10, 20, 30]
    commits.verify_set(store, retention.checkpoint("run", 10))
    retention.pin(store, "run", 10, on=False)
    assert retention.pinned(store, "run") == set()
    with pytest.raises(FileNotFoundError):
        retention.pin(store, "run", 11, on=True)


def test_only_old_sets_without_marker_are_incomplete(store: FileStore) -> None:
    prefix = retention.checkpoint("run", 20)
    store.delete(f"{prefix}/{layout.COMMITTED}")
    assert retention.incomplete(store, "run", before=0) == []
    assert retention.incomplete(store, "run", before=2e10) == [prefix]
