"""push on a folder store: what may go, what is there already, what an interrupted one left."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path

import pytest
from standin import launch

from jobs import commits
from jobs.access import Access
from jobs.stores import FileStore
from launcher import data, push
from launcher.errors import Forbidden, Misconfigured, NameTaken, NotFound, Usage
from launcher.settings import Settings, Target


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "model"
    (found / "unet").mkdir(parents=True)
    (found / "unet" / "w.safetensors").write_bytes(b"w" * 70_000)
    (found / "model_index.json").write_text("{}")
    (found / "with blank \u00e9.txt").write_text("x")
    return found


@pytest.fixture
def where(tmp_path):
    return push.place(str(tmp_path / "store/sets/model"), Access())


def send(where, folder, moved=lambda _: None):
    files = push.survey(folder)
    assert not push.committed(where, files, moved)
    return push.send(where, folder, files, moved)


def settings():
    return Settings(Target(), dict.fromkeys(Target.__dataclass_fields__, "default"))


def test_a_pushed_folder_is_a_committed_set_and_comes_back_whole(where, folder, tmp_path):
    moved = []
    manifest = send(where, folder, moved.append)
    assert {row.path for row in manifest.files} == {
        "unet/w.safetensors", "model_index.json", "with blank \u00e9.txt",
    }  # fmt: skip
    assert sum(moved) == sum(row.bytes for row in manifest.files)
    commits.download(where.store, where.prefix, tmp_path / "back")
    for row in manifest.files:
        assert (tmp_path / "back" / row.path).read_bytes() == (folder / row.path).read_bytes()


def test_the_verb_prints_the_address_alone_and_sends_nothing_twice(tmp_path, folder):
    first = launch(tmp_path, "push", "model", "store/sets/model")
    url = (tmp_path / "store/sets/model").as_uri()
    assert (first.returncode, first.stdout) == (0, f"{url}\n")
    assert "pushed 3 files (68.4 KiB)" in first.stderr
    marks = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.is_file()}
    again = launch(tmp_path, "push", "model", "store/sets/model/")
    assert (again.returncode, again.stdout) == (0, f"{url}\n")
    assert "nothing was sent" in again.stderr
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert marks == after


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "model_index.json").write_text("{ }"), "'model_index.json' is another"),
        (lambda f: (f / "model_index.json").write_text("[]"), "'model_index.json' is another"),
        (lambda f: (f / "new").write_text("x"), "'new' is not in it"),
        (lambda f: (f / "model_index.json").unlink(), "'model_index.json' is not here"),
    ],
)
def test_another_set_is_never_replaced(where, folder, change, told):
    send(where, folder)
    before = commits.read_manifest(where.store, where.prefix)
    change(folder)
    with pytest.raises(NameTaken, match=told):
        push.committed(where, push.survey(folder), lambda _: None)
    assert commits.verify_set(where.store, where.prefix) == before


def test_a_place_that_holds_something_else_is_refused(where, folder):
    where.store.write("model/claim.json", b"{}")
    with pytest.raises(NameTaken, match=r"holds 'claim\.json', which is not of this folder"):
        send(where, folder)
    assert [entry.key for entry in where.store.list("model/")] == ["model/claim.json"]


def test_a_damaged_set_is_refused(where, folder):
    send(where, folder)
    (where.store.root / "model/MANIFEST.json").write_text("{}")
    with pytest.raises(NameTaken, match="its manifest is not the one"):
        push.committed(where, push.survey(folder), lambda _: None)


def test_a_place_that_is_a_file_is_refused(where, folder):
    where.store.root.mkdir(parents=True)
    (where.store.root / "model").write_text("mine")
    with pytest.raises(NameTaken, match="is a file"):
        send(where, folder)


class Counting(FileStore):
    """Counts puts; fails from the one that `fail_at` names."""

    def __init__(self, root, fail_at=None):
        super().__init__(root)
        self.puts: list[str] = []
        self.fail_at = fail_at

    def put(self, key, path, progress=lambda _: None):
        if self.fail_at is not None and len(self.puts) >= self.fail_at:
            raise OSError("the store is away")
        self.puts.append(key)
        return super().put(key, path, progress)


def test_an_interrupted_push_goes_on_with_the_rest(where, folder, tmp_path):
    for number in range(20):
        (folder / f"{number}.txt").write_text(str(number))
    broken = push.Place(Counting(where.store.root, fail_at=9), where.prefix)
    with pytest.raises(OSError, match="away"):
        send(broken, folder)
    assert not commits.is_committed(where.store, where.prefix)
    (folder / "0.txt").write_text("changed meanwhile")
    whole = push.Place(Counting(where.store.root), where.prefix)
    manifest = send(whole, folder)
    assert 23 - 9 <= len(whole.store.puts) <= 23 - 9 + 1, "the rest, and what has changed"
    assert "model/0.txt" in whole.store.puts
    assert commits.verify_set(where.store, where.prefix) == manifest == commits.describe(folder)
    assert not list((tmp_path / "cache").rglob("*.jsonl")), "the memory goes with the commit"


def test_what_the_store_lost_meanwhile_is_sent_again(where, folder):
    broken = push.Place(Counting(where.store.root, fail_at=2), where.prefix)
    with pytest.raises(OSError, match="away"):
        send(broken, folder)
    for entry in list(where.store.list("model/")):
        (where.store.root / entry.key).write_bytes(b"?" * entry.size)  # same size, other bytes
    manifest = send(where, folder)
    assert commits.verify_set(where.store, where.prefix) == manifest


def test_a_file_that_changes_while_it_is_read_is_told_and_nothing_is_committed(where, folder):
    class Slow(Counting):
        def put(self, key, path, progress=lambda _: None):
            stored = super().put(key, path, progress)
            if path.name == "w.safetensors":
                path.write_bytes(b"v" * 70_000)
                os.utime(path, ns=(1, 1))
            return stored

    slow = push.Place(Slow(where.store.root), where.prefix)
    with pytest.raises(Misconfigured, match=r"w\.safetensors: changed while it was read"):
        send(slow, folder)
    assert not commits.is_committed(where.store, where.prefix)


def test_links_out_of_the_folder_and_to_folders_are_refused(folder, tmp_path):
    (tmp_path / "outside").write_text("x")
    (folder / "inside").symlink_to("model_index.json")
    assert "inside" in push.survey(folder), "a link within the folder is a file"
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(Misconfigured, match=r"link: is a link out of the folder") as caught:
        push.survey(folder)
    assert "cp -rL" in caught.value.hint
    (folder / "link").unlink()
    (folder / "link").symlink_to(folder / "unet")
    with pytest.raises(Misconfigured, match="link: is a link to a folder"):
        push.survey(folder)
    (folder / "link").unlink()
    (folder / "link").symlink_to("nowhere")
    with pytest.raises(NotFound, match="link: is a link to nothing"):
        push.survey(folder)
    (folder / "link").unlink()
    (folder / "link").symlink_to("link")
    with pytest.raises(NotFound, match="link: is a link to nothing"):
        push.survey(folder)


def test_names_that_no_store_takes_are_refused(folder):
    for name in ("a\nb", b"\xff".decode(errors="surrogateescape")):
        path = folder / name
        path.write_text("x")
        with pytest.raises(Misconfigured, match="is no name that a store takes") as caught:
            push.survey(folder)
        assert caught.value.text.isprintable()
        path.unlink()
    for name in ("MANIFEST.json", "COMMITTED"):
        (folder / name).write_text("x")
        with pytest.raises(Misconfigured, match="of its own"):
            push.survey(folder)
        (folder / name).unlink()
    (folder / "unet/COMMITTED").write_text("x")
    push.survey(folder)
    (folder / ".part-w").write_text("x")
    with pytest.raises(Misconfigured, match="interrupted transfer"):
        push.survey(folder)


def test_what_is_no_file_is_refused(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(Misconfigured, match="pipe: is neither a file nor a folder"):
        push.survey(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_read_is_told(what):
    """Root reads everything: as another user, in a folder that one may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "below").mkdir()
        (folder / "below/file").write_text("x")
        (folder / "below" if what == "folder" else folder / "below/file").chmod(0)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(Forbidden, match="cannot be read: Permission denied"):
                push.survey(folder)
        finally:
            os.seteuid(was)
            (folder / "below").chmod(0o755)


def test_empty_missing_and_wrong_folders_are_told(tmp_path, folder):
    (tmp_path / "empty/below").mkdir(parents=True)
    for name, kind, told in (
        ("empty", NotFound, "holds no file"),
        ("gone", NotFound, "no such folder"),
        ("model/model_index.json", Misconfigured, "is a file, not a folder"),
    ):
        with pytest.raises(kind, match=told):
            push.survey(tmp_path / name)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "/"])
def test_a_whole_bucket_is_no_place_for_a_set(url):
    with pytest.raises(Usage, match="names no folder"):
        push.place(url, Access())


def test_the_place_is_split_at_the_last_slash(tmp_path):
    found = push.place("s3://bucket/a/b/c/", Access())
    assert (found.store.url, found.prefix, found.url) == (
        "s3://bucket/a/b", "c", "s3://bucket/a/b/c",
    )  # fmt: skip
    found = push.place("s3://bucket/c", Access())
    assert (found.store.url, found.prefix, found.url) == ("s3://bucket", "c", "s3://bucket/c")


@pytest.mark.parametrize("url", ["model/inside", "model", "."])
def test_a_folder_is_not_pushed_into_itself(tmp_path, folder, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Misconfigured, Usage), match=r"lie in one another|names no folder"):
        data.upload(settings(), Path("model"), url)
    assert len(list(folder.rglob("*"))) == 4


def test_wrong_input_is_one_line_with_its_code(tmp_path, folder):
    for arguments, code in (
        (("gone", "s"), 66),
        (("model", "s3://b"), 2),
        (("model", "gs://x"), 78),
    ):
        done = launch(tmp_path, "push", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) <= 2


def test_rows_of_a_damaged_memory_count_for_nothing(where, folder, tmp_path):
    broken = push.Place(Counting(where.store.root, fail_at=2), where.prefix)
    with pytest.raises(OSError, match="away"):
        send(broken, folder)
    (memory,) = (tmp_path / "cache").rglob("*.jsonl")
    rows = [json.loads(line) for line in memory.read_text().splitlines()]
    memory.write_text("garbage\n[]\n3\n" + json.dumps([rows[0][0], "x"]) + "\n" + '["half')
    whole = push.Place(Counting(where.store.root), where.prefix)
    send(whole, folder)
    assert len(whole.store.puts) == 3


def test_ctrl_c_ends_all_threads_and_the_next_push_goes_on(where, folder):
    for number in range(30):
        (folder / f"{number}.txt").write_text(str(number))
    calls, lock = [], threading.Lock()

    def moved(count):
        with lock:
            calls.append(count)
            if len(calls) > 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(where, folder, moved)
    assert len(calls) < 15, "no further file is begun"
    assert not commits.is_committed(where.store, where.prefix)
    assert send(where, folder) == commits.describe(folder)
