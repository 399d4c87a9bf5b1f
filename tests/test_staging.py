"""Models and data sets from the store: fetched once, verified, gone on with, or one clear line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import commits, staging
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.specs import TrainSpec
from jobs.stores import FileStore

URL = "s3://bucket/models/small"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    """Stand a directory in for the buckets: staging knows the Store protocol alone."""
    root = tmp_path / "buckets"
    monkeypatch.setattr(
        staging, "open_store", lambda url, _access: FileStore(root / url.removeprefix("s3://"))
    )
    return FileStore(root / URL.removeprefix("s3://"))


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment(
        spec="", run="r", store="", uid="u", work=tmp_path / "work", cache=tmp_path / "cache"
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "weights").write_bytes(b"w" * 1000)
    return folder


def fetch(env: Environment, url: str = URL) -> Path:
    return staging.fetch(url, env, lambda: False)


def test_a_spec_gets_local_paths_and_the_rest_of_it_stays(
    env: Environment, bucket: FileStore, model: Path
) -> None:
    commits.commit(bucket, "", model)
    spec = TrainSpec(model=URL, data="tiny", steps=7)
    local = staging.stage(env, spec, lambda: False)
    assert (Path(local.model) / "unet" / "weights").read_bytes() == b"w" * 1000
    assert local.model_copy(update={"model": URL}) == spec


def test_what_is_there_is_not_fetched_again(
    env: Environment, bucket: FileStore, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits.commit(bucket, "", model)
    first = fetch(env)
    monkeypatch.setattr(staging, "get_all", lambda *_: pytest.fail("fetched again"))
    assert fetch(env) == first


def test_an_interrupted_copy_goes_on_and_a_damaged_file_is_fetched_again(
    env: Environment, bucket: FileStore, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits.commit(bucket, "", model)
    folder = fetch(env)
    folder.with_name(f"{folder.name}.json").unlink()
    (folder / "unet" / "weights").write_bytes(b"w" * 999 + b"x")
    real, wanted = staging.get_all, []
    monkeypatch.setattr(
        staging, "get_all", lambda store, items: wanted.extend(items) or real(store, items)
    )
    fetch(env)
    assert [key for key, _ in wanted] == ["unet/weights"]
    assert (folder / "unet" / "weights").read_bytes() == b"w" * 1000


def test_a_new_version_is_another_folder(env: Environment, bucket: FileStore, model: Path) -> None:
    commits.commit(bucket, "", model)
    first = fetch(env)
    (model / "model_index.json").write_text('{"new": 1}')
    commits.commit(bucket, "", model)
    assert fetch(env) != first


def test_a_prefix_that_nobody_committed_and_a_single_object(
    env: Environment, bucket: FileStore, model: Path
) -> None:
    bucket.put("a/data.parquet", model / "unet" / "weights")
    assert (fetch(env) / "a" / "data.parquet").stat().st_size == 1000
    single = fetch(env, f"{URL}/a/data.parquet")
    assert single.name == "data.parquet"
    assert single.stat().st_size == 1000


def test_nothing_there_damaged_and_no_room_are_told(
    env: Environment, bucket: FileStore, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadSpec, match=f"{URL}: there is nothing"):
        fetch(env)
    commits.commit(bucket, "", model)
    (bucket.root / "unet" / "weights").write_bytes(b"z" * 1000)
    with pytest.raises(BadData, match="unet/weights: is not the object"):
        fetch(env)
    usage = shutil.disk_usage(env.cache)._replace(free=1 << 20)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Unavailable, match="1 MiB are free"):
        fetch(env)


def test_a_stop_ends_the_wait_for_another_job(
    env: Environment, bucket: FileStore, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits.commit(bucket, "", model)
    name = fetch(env).name
    lock = env.cache / f"{name}.lock"
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Unavailable, match="another job"):
            staging.fetch(URL, env, lambda: True)
    finally:
        other.kill()
        other.wait()


def test_a_cache_that_cannot_be_written_is_named(
    env: Environment, bucket: FileStore, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits.commit(bucket, "", model)

    def mkdir(*_: object, **__: object) -> None:  # root may write everywhere
        raise PermissionError(13, "Permission denied", str(env.cache))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(Unavailable, match="cache: cannot be written by uid"):
        fetch(env)


def test_half_a_push_several_sets_and_a_run_are_refused(
    env: Environment, bucket: FileStore, model: Path
) -> None:
    bucket.put("unet/weights", model / "unet" / "weights")
    beside = FileStore(bucket.root.parent)
    beside.write("small.pushing", b"")
    with pytest.raises(BadSpec, match="its upload has not ended"):
        fetch(env)
    beside.delete("small.pushing")
    assert (fetch(env) / "unet" / "weights").is_file()
    commits.commit(bucket, "sets/one", model)
    with pytest.raises(BadSpec, match="sets/one/COMMITTED: is a run or several sets"):
        fetch(env)
