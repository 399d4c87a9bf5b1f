from __future__ import annotations

import hashlib
import json

import pytest

from jobs import commits
from jobs.stores import FileStore
from launcher import transfer
from launcher.errors import Misconfigured, NameTaken, NotFound

PICTURE = b"a picture"


@pytest.fixture
def store(tmp_path):
    """A run with two committed checkpoints, one that is not, a picture and records."""
    store = FileStore(tmp_path / "store")
    for step in (20, 40):
        folder = tmp_path / f"set-{step}"
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "loop.json").write_text(str(step))
        (folder / "lora.safetensors").write_bytes(b"w" * step)
        commits.commit(store, f"r/checkpoints/step-{step:08d}", folder)
    store.write("r/checkpoints/step-00000060/lora.safetensors", b"not committed")
    row = {"file": "images/00001-00.png", "sha256": hashlib.sha256(PICTURE).hexdigest()}
    store.write("r/images/00001-00.png", PICTURE)
    store.write("r/images/00002-00.png", b"not in the manifest")
    store.write("r/manifest.jsonl", json.dumps(row).encode())
    store.write("r/result.json", b"{}")
    store.write("r/claim.json", b"{}")
    return store


def copy(store, folder, include=(), force=False):
    wanted = transfer.items(store, "r", include)
    plan = transfer.compare(store, "r", folder, wanted, force=force)
    found = {item.path: False for item in wanted if item not in plan.missing}
    fresh: list[str] = []
    transfer.fetch(store, "r", folder, plan.missing, done=lambda row: fresh.append(row.item.path))
    return found | dict.fromkeys(fresh, True)


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


CHECKPOINT = {
    "checkpoints/step-00000040/lora.safetensors",
    "checkpoints/step-00000040/state/loop.json",
    "checkpoints/step-00000040/MANIFEST.json",
    "checkpoints/step-00000040/COMMITTED",
}
ALL = CHECKPOINT | {"images/00001-00.png", "manifest.jsonl", "result.json"}


def test_newest_commit_pictures_and_records_arrive(store, tmp_path):
    assert copy(store, tmp_path / "out") == dict.fromkeys(ALL, True)
    found = tree(tmp_path / "out")
    assert found.keys() == ALL
    assert all(store.read(f"r/{path}") == data for path, data in found.items())


def test_what_lies_there_whole_is_not_copied_again(store, tmp_path):
    copy(store, tmp_path / "out")
    (tmp_path / "out/images/00001-00.png").write_bytes(b"half a pict")
    store.write("r/result.json", b'{"new": 1}')
    again = copy(store, tmp_path / "out", force=True)
    assert {path for path, fresh in again.items() if fresh} == {
        "images/00001-00.png",
        "result.json",
    }
    assert (tmp_path / "out/images/00001-00.png").read_bytes() == PICTURE


@pytest.mark.parametrize("path", ["images/00001-00.png", "result.json"])
def test_another_file_is_not_replaced_and_nothing_is_half_done(store, tmp_path, path):
    (tmp_path / "out" / path).parent.mkdir(parents=True)
    (tmp_path / "out" / path).write_bytes(b"mine")
    with pytest.raises(NameTaken, match="exists and is another file") as caught:
        copy(store, tmp_path / "out")
    assert str(tmp_path / "out" / path) in caught.value.text
    assert "--force" in caught.value.hint
    assert tree(tmp_path / "out") == {path: b"mine"}
    copy(store, tmp_path / "out", force=True)
    assert (tmp_path / "out" / path).read_bytes() == store.read(f"r/{path}")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_in_a_file_s_place_is_never_replaced(store, tmp_path, force):
    (tmp_path / "out/result.json").mkdir(parents=True)
    with pytest.raises(NameTaken, match=r"result\.json: is a folder"):
        copy(store, tmp_path / "out", force=force)
    assert tree(tmp_path / "out") == {}


def test_a_file_in_a_folder_s_place_is_named_first(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/images").write_text("mine")
    with pytest.raises(NameTaken, match=r"out/images: is a file"):
        copy(store, tmp_path / "out")
    assert tree(tmp_path / "out") == {"images": b"mine"}


def test_include_chooses(store, tmp_path):
    assert copy(store, tmp_path / "out", ["images/*"]) == {"images/00001-00.png": True}
    assert copy(store, tmp_path / "out", ["checkpoints/*", "result.json"]).keys() == CHECKPOINT | {
        "result.json"
    }
    with pytest.raises(NotFound) as caught:
        transfer.items(store, "r", ["image/*"])
    assert "images/*" in caught.value.hint


@pytest.mark.parametrize(
    "path", ["checkpoints/step-00000040/lora.safetensors", "images/00001-00.png"]
)
def test_a_damaged_file_is_refused_and_leaves_nothing(store, tmp_path, path):
    (store.root / "r" / path).write_bytes(b"damaged")
    with pytest.raises(NotFound, match="is not the file that was committed") as caught:
        copy(store, tmp_path / "out")
    assert path in caught.value.text
    assert path not in tree(tmp_path / "out")
    assert not [name for name in tree(tmp_path / "out") if ".part-" in name]


def test_a_damaged_file_does_not_replace_a_good_one(store, tmp_path):
    copy(store, tmp_path / "out")
    (store.root / "r/images/00001-00.png").write_bytes(b"damaged")
    copy(store, tmp_path / "out")
    assert (tmp_path / "out/images/00001-00.png").read_bytes() == PICTURE


def test_a_damaged_manifest_is_refused(store, tmp_path):
    path = store.root / "r/checkpoints/step-00000040/MANIFEST.json"
    path.write_bytes(path.read_bytes().replace(b"lora", b"arol"))
    with pytest.raises(NotFound, match="manifest"):
        copy(store, tmp_path / "out")


def test_a_file_that_is_gone_is_named(store, tmp_path):
    (store.root / "r/images/00001-00.png").unlink()
    with pytest.raises(NotFound, match=r"r/images/00001-00\.png: is gone"):
        copy(store, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "images/../../evil", "a//evil", "./evil", "a\0b", "\ud800"]
)
def test_records_cannot_name_a_file_outside(store, tmp_path, name):
    store.write("r/manifest.jsonl", json.dumps({"file": name, "sha256": "0"}).encode())
    with pytest.raises(Misconfigured, match="outside"):
        copy(store, tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_unknown_and_empty_runs_are_told_apart(store):
    with pytest.raises(NotFound, match="no such run"):
        transfer.items(store, "s", ())
    store.write("s/claim.json", b"{}")
    with pytest.raises(NotFound, match="nothing is committed yet"):
        transfer.items(store, "s", ())
