"""Laws of the file store: atomic, conditional, listed by prefix."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import BadSpec
from jobs.stores import Conflict, FileStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def test_what_is_written_is_read_and_listed(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    store.put("run/a/b", tmp_path / "f")
    store.write("run/c", b"")
    store.write("other/d", b"x")
    assert [(e.key, e.size) for e in store.list("run/")] == [("run/a/b", 3), ("run/c", 0)]
    store.get("run/a/b", tmp_path / "deep" / "g")
    assert (tmp_path / "deep" / "g").read_bytes() == b"abc"
    store.delete("run/a/b")
    store.delete("run/a/b")
    assert [e.key for e in store.list("run/")] == ["run/c"]


def test_a_missing_object_is_file_not_found(store: FileStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("no")
    with pytest.raises(FileNotFoundError):
        store.get("no", tmp_path / "g")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../../b", "a/."])
def test_keys_cannot_leave_the_root(store: FileStore, key: str) -> None:
    with pytest.raises(ValueError, match="illegal key"):
        store.write(key, b"x")


def test_swap_is_conditional(store: FileStore) -> None:
    store.swap("claim", None, b"1")
    with pytest.raises(Conflict):
        store.swap("claim", None, b"2")
    with pytest.raises(Conflict):
        store.swap("claim", b"0", b"2")
    store.swap("claim", b"1", b"2")
    assert store.read("claim") == b"2"


def test_of_many_that_swap_at_once_one_wins(store: FileStore) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            store.swap("claim", None, str(number).encode())
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("claim") == str(won[0]).encode()


def test_a_failed_write_leaves_the_old_object_and_no_rubbish(
    store: FileStore, tmp_path: Path
) -> None:
    store.write("a", b"old")
    with pytest.raises(OSError):
        store.put("a", tmp_path / "missing")
    assert store.read("a") == b"old"
    assert [p.name for p in store.root.iterdir()] == ["a"]


@given(st.lists(st.text("ab/", min_size=1, max_size=6), max_size=6), st.text("ab/", max_size=4))
def test_list_is_exactly_the_keys_with_the_prefix(keys: list[str], prefix: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(Path(folder))
        written = set()
        for key in keys:
            try:
                store.write(key, b"")
                written.add(key)
            except (ValueError, OSError):  # illegal, or a file where a folder must be
                continue
        assert [e.key for e in store.list(prefix)] == sorted(
            k for k in written if k.startswith(prefix)
        )


def test_urls() -> None:
    assert open_store("/x/y").url == "file:///x/y"
    assert open_store("file:///x/y%20z").url == "file:///x/y%20z"
    assert open_store("s3://bucket/pre/fix/").url == "s3://bucket/pre/fix"
    assert open_store("s3://bucket").url == "s3://bucket"
    with pytest.raises(BadSpec, match="s3://bucket/prefix"):
        open_store("gs://bucket/prefix")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://",
        "s3:///prefix",
        "s3://bucket/../x",
        "s3:/bucket/x",
        "S3://bucket/x",
        "//[x",
        "file://[x",
        "file://",
        "file:runs",
        "file:///a%00b",
        "a\0b",
        "~no-such-user/x",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadSpec, match="store ") as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
