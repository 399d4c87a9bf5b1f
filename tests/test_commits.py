"""The commit protocol: nothing is visible before it is whole, verified and still ours."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs import claims, commits, layout
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.stores import FileStore, Progress, Stored, unwatched

OURS = {"cluster": "c", "namespace": "n", "uid": "u1"}


class Failing(FileStore):
    """A store whose writes fail from the n-th on, or that gives back other bytes."""

    writes_left = 10**9
    lie = False

    def _spend(self) -> None:
        self.writes_left -= 1
        if self.writes_left < 0:
            raise OSError("away")

    def put(self, key: str, path: Path, progress: Progress = unwatched) -> Stored:
        self._spend()
        return super().put(key, path, progress)

    def write(self, key: str, data: bytes) -> Stored:
        self._spend()
        return super().write(key, data)

    def sha256(self, key: str) -> str:
        return "0" * 64 if self.lie and key.endswith("state") else super().sha256(key)


@pytest.fixture
def store(tmp_path: Path) -> Failing:
    return Failing(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "state").write_bytes(b"abcdef")
    (folder / "sub" / "more").write_bytes(b"")
    return folder


PREFIX = "run/checkpoints/step-00000020"


def test_a_commit_is_read_back_equal(store: Failing, folder: Path, tmp_path: Path) -> None:
    commits.commit(store, PREFIX, folder)
    assert commits.committed_steps(store, "run") == [20]
    commits.download(store, PREFIX, tmp_path / "back")
    assert (tmp_path / "back" / "state").read_bytes() == b"abcdef"
    assert (tmp_path / "back" / "sub" / "more").read_bytes() == b""
    assert next(e.key for e in store.list(PREFIX)).endswith(layout.COMMITTED)


@pytest.mark.parametrize("writes", range(4))
def test_a_store_that_fails_at_any_write_shows_nothing(
    store: Failing, folder: Path, writes: int
) -> None:
    store.writes_left = writes
    with pytest.raises(OSError):
        commits.commit(store, PREFIX, folder)
    assert commits.committed_steps(store, "run") == []
    with pytest.raises(FileNotFoundError):
        commits.read_manifest(store, PREFIX)
    store.writes_left = 10
    commits.commit(store, PREFIX, folder)
    assert commits.committed_steps(store, "run") == [20]


def test_bytes_that_come_back_changed_are_not_committed(store: Failing, folder: Path) -> None:
    store.lie = True
    with pytest.raises(OSError, match="other bytes"):
        commits.commit(store, PREFIX, folder)
    assert commits.committed_steps(store, "run") == []


def test_a_file_that_rots_after_its_commit_is_noticed(
    store: Failing, folder: Path, tmp_path: Path
) -> None:
    commits.commit(store, PREFIX, folder)
    store.write(f"{PREFIX}/state", b"abcdeX")
    with pytest.raises(BadData, match="step-00000020/state"):
        commits.download(store, PREFIX, tmp_path / "back")
    assert not (tmp_path / "back" / "state").exists()
    store.write(f"{PREFIX}/{layout.MANIFEST}", b'{"files": []}')
    with pytest.raises(BadData, match="manifest"):
        commits.read_manifest(store, PREFIX)


def test_attempts_count_up_and_another_submission_is_refused(store: Failing) -> None:
    assert claims.take_claim(store, "run", **OURS).epoch == 1
    assert claims.take_claim(store, "run", **OURS).epoch == 2
    with pytest.raises(BadSpec, match="another submission"):
        claims.take_claim(store, "run", **{**OURS, "uid": "u2"})


def test_an_old_attempt_can_neither_commit_nor_hide(store: Failing, folder: Path) -> None:
    old = claims.take_claim(store, "run", **OURS)
    new = claims.take_claim(store, "run", **OURS)
    commits.commit(store, PREFIX, folder, lambda: claims.check_claim(store, "run", new))
    with pytest.raises(Unavailable, match="taken over"):
        commits.commit(store, PREFIX, folder, lambda: claims.check_claim(store, "run", old))
    assert commits.committed_steps(store, "run") == [20]


def test_an_attempt_overtaken_during_its_upload_does_not_commit(
    store: Failing, folder: Path
) -> None:
    mine = claims.take_claim(store, "run", **OURS)
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:  # after the upload, before the marker
            claims.take_claim(store, "run", **OURS)
        claims.check_claim(store, "run", mine)

    with pytest.raises(Unavailable):
        commits.commit(store, PREFIX, folder, check)
    assert commits.committed_steps(store, "run") == []


def test_a_set_written_again_is_invisible_until_whole(store: Failing, folder: Path) -> None:
    commits.commit(store, PREFIX, folder)
    (folder / "state").write_bytes(b"other bytes")
    store.writes_left = 1
    with pytest.raises(OSError):
        commits.commit(store, PREFIX, folder)
    assert commits.committed_steps(store, "run") == []


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"uid": "u1"}', b"\xff"])
def test_a_damaged_claim_or_marker_is_named(store: Failing, folder: Path, junk: bytes) -> None:
    store.write("run/claim.json", junk)
    with pytest.raises(BadSpec, match=r"claim\.json is damaged"):
        claims.take_claim(store, "run", **OURS)
    commits.commit(store, PREFIX, folder)
    store.write(f"{PREFIX}/{layout.COMMITTED}", junk)
    with pytest.raises(BadData, match="manifest"):
        commits.read_manifest(store, PREFIX)


def test_what_an_earlier_call_has_sent_is_not_sent_again(store: Failing, folder: Path) -> None:
    sent: dict[str, Stored] = {}
    store.writes_left = 2  # the files, but not the manifest
    with pytest.raises(OSError, match="away"):
        commits.commit(store, PREFIX, folder, sent=sent)
    assert set(sent) == {f"{PREFIX}/state", f"{PREFIX}/sub/more"}
    store.writes_left = 2  # the manifest and the marker
    commits.commit(store, PREFIX, folder, sent=sent)
    assert commits.committed_steps(store, "run") == [20]


def test_another_object_than_was_written_is_sent_again(store: Failing, folder: Path) -> None:
    sent = {f"{PREFIX}/state": Stored(999, "0" * 64), f"{PREFIX}/sub/more": Stored(0, "0" * 64)}
    store.write(f"{PREFIX}/state", b"abcdef")
    store.write(f"{PREFIX}/sub/more", b"")
    with pytest.raises(OSError, match="state: is another object"):
        commits.commit(store, PREFIX, folder, sent=sent)
    assert sent == {}
    commits.commit(store, PREFIX, folder, sent=sent)
    commits.verify_set(store, PREFIX)


def test_two_attempts_of_one_epoch_differ(store: Failing, tmp_path: Path) -> None:
    first = claims.take_claim(store, "run", cluster="", namespace="", uid="u")
    other = FileStore(tmp_path / "other")
    second = claims.take_claim(other, "run", cluster="", namespace="", uid="u")
    assert first.epoch == second.epoch
    assert first.to_json() != second.to_json()


def test_a_claim_that_is_read_wrong_once_is_read_again(
    store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claims.take_claim(store, "run", cluster="", namespace="", uid="u")
    answers = [claim.to_json().replace(b"u", b"x"), claim.to_json()]
    monkeypatch.setattr(Failing, "read", lambda _self, _key: answers.pop(0))
    claims.check_claim(store, "run", claim)
    assert answers == []


def test_only_the_marker_itself_makes_a_set_committed(store: Failing) -> None:
    store.write(f"{PREFIX}/{layout.COMMITTED}-of-somebody", b"")
    assert not commits.is_committed(store, PREFIX)


@pytest.mark.parametrize("path", ["../evil", "/evil", "a/../../evil", ""])
def test_a_manifest_cannot_name_a_file_outside(store: Failing, tmp_path: Path, path: str) -> None:
    lie = commits.Manifest((commits.FileRow(path, 4, "0" * 64),)).to_json()
    store.write(f"{PREFIX}/{layout.MANIFEST}", lie)
    store.write(f"{PREFIX}/{layout.COMMITTED}", hashlib.sha256(lie).hexdigest().encode())
    store.write("run/checkpoints/evil", b"evil")
    with pytest.raises(BadData, match="names a file outside"):
        commits.download(store, PREFIX, tmp_path / "back" / "deep")
    assert not list(tmp_path.rglob("back/**/*"))
