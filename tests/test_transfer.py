from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from standin import launch, start

from jobs import commits
from jobs.stores import FileStore, sha256_of
from launcher import contents, data, records, transfer
from launcher.errors import Misconfigured, NameTaken, NotFound
from launcher.meter import Meter
from launcher.receipts import Receipts

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


def copy(store, folder, include=(), force=False, step=None):
    wanted = contents.items(store, "r", include, step)
    plan = transfer.compare(store, "r", folder, wanted, force=force)
    found = {item.path: False for item in wanted if item not in plan.missing}
    fresh: list[str] = []
    transfer.fetch(store, "r", folder, plan.missing, done=lambda row: fresh.append(row.item.path))
    return found | dict.fromkeys(fresh, True)


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def visible(folder):
    """Return what is no draft; drafts come and go while one looks."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    shown = [name for name in names if ".part-" not in name and (folder / name).is_file()]
    return {name: (folder / name).read_bytes() for name in shown}


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
        contents.items(store, "r", ["image/*"])
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
        contents.items(store, "s", ())
    store.write("s/claim.json", b"{}")
    with pytest.raises(NotFound, match="nothing is committed yet"):
        contents.items(store, "s", ())


def test_a_file_appears_only_when_it_is_whole_and_others_go_on_at_once(store, tmp_path):
    """What arrives is hidden until its digest is compared; several files are on their way."""
    seen, busy, most, lock = [], 0, 0, threading.Lock()

    class Watching(FileStore):
        def get(self, key, path, progress=lambda _: None):
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.05)
            found = super().get(key, path, progress)
            seen.append((key.removeprefix("r/"), visible(tmp_path / "out")))
            with lock:
                busy -= 1
            return found

    done = copy(Watching(store.root), tmp_path / "out")
    assert done.keys() == ALL
    assert most > 1
    assert len(seen) == len(ALL)
    for path, files in seen:  # each at the moment when its bytes are there and not yet compared
        assert path not in files
        assert all(data == store.read(f"r/{p}") for p, data in files.items() if p in ALL)
    assert not list((tmp_path / "out").rglob(".part-*"))


def test_an_interrupted_fetch_goes_on_with_what_is_missing(store, tmp_path):
    class Away(FileStore):
        def get(self, key, path, progress=lambda _: None):
            if key.endswith("00001-00.png"):
                raise OSError("away")
            return super().get(key, path, progress)

    with pytest.raises(OSError, match="away"):
        copy(Away(store.root), tmp_path / "out")
    there = set(tree(tmp_path / "out"))
    assert there < ALL
    again = copy(store, tmp_path / "out")
    assert {path for path, fresh in again.items() if fresh} == ALL - there


def test_a_record_that_we_fetched_may_grow_and_a_stranger_s_may_not(store, tmp_path):
    (tmp_path / "out").mkdir()
    copy(store, tmp_path / "out")
    wanted = contents.items(store, "r", ["result.json"])
    ours = {"result.json": hashlib.sha256(b"{}").hexdigest()}
    store.write("r/result.json", b'{"new": 1}')
    plan = transfer.compare(store, "r", tmp_path / "out", wanted, ours=ours)
    assert plan.missing == wanted
    (tmp_path / "out/result.json").write_text("mine")
    with pytest.raises(NameTaken, match="exists and is another file"):
        transfer.compare(store, "r", tmp_path / "out", wanted, ours=ours)


def test_sizes_are_told_before_anything_is_fetched(store, tmp_path):
    wanted = contents.items(store, "r")
    sizes = {item.path: item.bytes for item in wanted}
    assert sizes == {path: len(store.read(f"r/{path}")) for path in ALL}
    assert transfer.compare(store, "r", tmp_path / "out", wanted).bytes == sum(sizes.values())


def test_an_older_checkpoint_comes_when_it_is_named(store, tmp_path):
    got = copy(store, tmp_path / "out", step=20).keys()
    assert {path.split("/")[1] for path in got if path.startswith("checkpoints")} == {
        "step-00000020"
    }
    with pytest.raises(NotFound, match="step 60 is no committed checkpoint") as told:
        copy(store, tmp_path / "out", step=60)
    assert told.value.hint == "there are 20, 40"


def test_a_damaged_checkpoint_keeps_nothing_else_from_being_fetched(store, tmp_path):
    store.write("r/checkpoints/step-00000040/MANIFEST.json", b"{")
    with pytest.raises(NotFound, match="step-00000040") as told:
        copy(store, tmp_path / "out")
    assert told.value.hint == "--step fetches another: 20"
    assert "checkpoints/step-00000020/COMMITTED" in copy(store, tmp_path / "a", step=20)
    assert copy(store, tmp_path / "b", ["images/*", "result.json"]).keys() == {
        "images/00001-00.png",
        "result.json",
    }


def test_logs_come_when_they_are_asked_for(store, tmp_path):
    store.write("r/logs/attempt-1/worker_0.log", b"step=1\n")
    assert copy(store, tmp_path / "out").keys() == ALL
    assert copy(store, tmp_path / "out", ["logs/*"]).keys() == {"logs/attempt-1/worker_0.log"}


def ended(store, attempt, code, namespace):
    row = {"attempt": attempt, "namespace": namespace, "code": code, "reason": "no more memory"}
    store.write("r/end.json", json.dumps(row).encode())


@pytest.mark.parametrize(
    ("attempt", "code", "namespace", "final"),
    [
        (2, 137, "", True),  # of a machine: nobody starts it again
        (2, 137, "team", False),  # of a cluster, which does
        (2, 70, "team", True),
        (1, 70, "team", None),  # of an attempt before: this one goes on
        (2, 12345, "", None),
    ],
)
def test_the_end_of_the_newest_attempt_is_known(store, attempt, code, namespace, final):
    store.write("r/claim.json", b'{"epoch": 2}')
    ended(store, attempt, code, namespace)
    assert records.end(store, "r").get("final") is final


@pytest.mark.parametrize(
    "text",
    [
        '{"attempt": 2, "code": [1]}',
        "{",
        "",
        "[]",
        '{"attempt": 2}',
        '{"attempt": 2, "code": true}',
    ],
)
def test_a_record_of_the_end_that_is_damaged_hides_nothing(place, store, text):
    store.write("r/claim.json", b'{"epoch": 2}')
    store.write("r/end.json", text.encode())
    assert records.end(store, "r") == {}
    done = launch(place, "list", "--store", "store", "--json")
    assert [(row["run"], row["state"]) for row in json.loads(done.stdout)] == [("r", "succeeded")]


def test_a_reason_does_not_speak_to_the_terminal(store):
    store.write("r/claim.json", b'{"epoch": 2}')
    row = {"attempt": 2, "code": 79, "reason": "worker 0\u001b[2J"}
    store.write("r/end.json", json.dumps(row).encode())
    assert records.end(store, "r")["reason"] == "worker 0?[2J"


def test_a_narrow_fetch_leaves_what_another_has_begun(store, tmp_path):
    begun = tmp_path / "out/.part-r/checkpoints/step-00000040/.part-lora.safetensors"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"half")
    copy(store, tmp_path / "out", ["images/*"])
    assert begun.read_bytes() == b"half"


def test_a_large_file_of_another_size_is_not_read(store, tmp_path, monkeypatch):
    there = tmp_path / "out/checkpoints/step-00000040/lora.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"x" * 41)
    monkeypatch.setattr(transfer, "sha256_of", lambda path: pytest.fail(f"read {path}"))
    wanted = contents.items(store, "r", ["*.safetensors"])
    with pytest.raises(NameTaken, match="exists and is another file"):
        transfer.compare(store, "r", tmp_path / "out", wanted)
    assert transfer.compare(store, "r", tmp_path / "out", wanted, force=True).missing == wanted


def test_watch_ends_with_a_run_that_failed_elsewhere(place, store):
    (store.root / "r/result.json").unlink()
    store.write("r/claim.json", b'{"epoch": 2}')
    ended(store, 2, 70, "team")
    done = launch(place, "fetch", "r", "out", "--store", "store", "--watch")
    assert done.returncode == 70
    assert "error: run 'r': ended without a result: no more memory" in done.stderr
    assert (place / "out/checkpoints/step-00000040/COMMITTED").is_file(), "what there is comes"


WATCH = ("fetch", "run", "out", "--backend", "local", "--watch")
TRAIN = ("submit", "train", "--backend", "local", "--name", "run")


def test_watch_fetches_each_commit_until_the_run_has_ended(place):
    launch(place, *TRAIN, "--steps", "4", env={"STANDIN_SECONDS": "1.2"})
    code = (
        "import sys\nfrom launcher import cli, data\ndata.WATCH_SECONDS = 0.2\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    while not list((place / "runs/run").glob("*.json")):
        time.sleep(0.05)
    done = subprocess.run(
        [sys.executable, "-c", code, *WATCH], cwd=place, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, "XDG_CACHE_HOME": str(place / "cache")},
    )  # fmt: skip
    # The stand-in leaves no result: the run is known to have ended, and that is what is told.
    assert done.returncode == 70, done.stderr
    assert "error: run 'run': ended without a result" in done.stderr
    steps = sorted(path.name for path in (place / "out/checkpoints").iterdir())
    assert len(steps) >= 2, "it came by more than once"
    assert steps[-1] == "step-00000004"
    assert (place / "out/metrics.jsonl").read_bytes() == (
        place / "runs/run/metrics.jsonl"
    ).read_bytes()
    assert done.stdout.count("step-00000004/COMMITTED\n") == 1, "nothing is fetched twice"


def test_a_second_look_compares_only_what_has_changed(store, tmp_path, monkeypatch):
    """A watched checkpoint of 30 GB must not be read again every few seconds."""
    read = []
    monkeypatch.setattr(transfer, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    told, receipts = data._Fetched(), Receipts(tmp_path / "out", "r")

    def look():
        read.clear()
        there = contents.items(store, "r")
        data._pass(store, "r", tmp_path / "out", there, told, receipts, force=False)
        return [path.name for path in read]

    look()
    assert look() == []
    store.write("r/result.json", b'{"new": 1}')
    assert look() == ["result.json"]
    assert (tmp_path / "out/result.json").read_bytes() == b'{"new": 1}'
    assert (told.new.keys(), told.kept) == (ALL, 0), "a record that has grown is one file"


def test_watch_looks_once_more_for_the_record_of_the_end(place, store):
    """It is written just after the result, by which a run is known to be over."""
    store.write("r/claim.json", b'{"epoch": 2}')
    code = (
        "import sys\nfrom launcher import cli, data\ndata.WATCH_SECONDS = 1.5\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    watching = subprocess.Popen(
        [sys.executable, "-c", code, "fetch", "r", "out", "--store", "store", "--watch"],
        cwd=place, env={**os.environ, "XDG_CACHE_HOME": str(place / "cache")},
    )  # fmt: skip
    while not (place / "out/result.json").is_file():
        assert watching.poll() is None
        time.sleep(0.05)
    ended(store, 2, 0, "team")
    assert watching.wait(60) == 0
    assert (place / "out/end.json").is_file()


def test_watch_ends_with_the_result(place, store, tmp_path):
    done = launch(place, "fetch", "r", "out", "--store", "store", "--watch")
    assert done.returncode == 0
    assert {f"out/{path}" for path in ALL} == set(done.stdout.splitlines())


def test_ctrl_c_while_watching_is_130_and_keeps_what_came(place, store):
    (store.root / "r/result.json").unlink()
    process = start(place, "fetch", "r", "out", "--store", "store", "--watch")
    for _ in range(len(ALL) - 1):
        process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: the same command goes on with it" in err
    assert "Traceback" not in err
    assert set(tree(place / "out")) == ALL - {"result.json"}


def test_growing_records_are_fetched_again_without_force(place, store):
    wanted = ("fetch", "r", "out", "--store", "store")
    assert launch(place, *wanted).returncode == 0
    store.write("r/result.json", b'{"new": 1}')
    done = launch(place, *wanted)
    assert (done.returncode, done.stdout) == (0, "out/result.json\n")
    assert "fetched 1 file (10 B), verified; 6 lay there already" in done.stderr
    (place / "out/result.json").write_text("mine")
    done = launch(place, *wanted)
    assert done.returncode == 73
    assert (place / "out/result.json").read_text() == "mine"


@pytest.fixture
def mounts(missing):
    """Skip where no file system can be mounted."""
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        missing("chaos", "needs root and mount namespaces")


def test_a_full_disk_is_one_line_and_shows_nothing_half(place, store, mounts):
    (store.root / "r/images/00001-00.png").write_bytes(b"p" * 200_000)
    row = {"file": "images/00001-00.png", "sha256": hashlib.sha256(b"p" * 200_000).hexdigest()}
    store.write("r/manifest.jsonl", json.dumps(row).encode())
    (place / "out").mkdir()
    script = 'mount -t tmpfs -o size=64k none out && "$0" "$@"; code=$?; find out; exit $code'
    done = launch(
        place, "fetch", "r", "out", "--store", "store", before=("unshare", "-m", "sh", "-c", script)
    )
    assert done.returncode == 69
    (error, hint) = done.stderr.splitlines()
    assert error == "error: folder out: the disk is full"
    assert "make room" in hint
    assert "00001-00.png\n" not in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(place, store, mounts):
    (place / "out").mkdir()
    script = 'mount -t tmpfs -o ro none out && "$0" "$@"'
    done = launch(
        place, "fetch", "r", "out", "--store", "store", before=("unshare", "-m", "sh", "-c", script)
    )
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr.startswith("error: folder out: cannot be written: ")
    assert len(done.stderr.splitlines()) == 2


def test_a_meter_tells_bytes_rate_and_time_left():
    meter = Meter("fetch", 4 * 2**20)
    begin = meter._started
    meter.moved(2**20)
    assert meter.line(begin + 1) == ("fetch: 1.0 MiB of 4.0 MiB, 1.0 MiB/s, about 3s left")
    meter.moved(2**20)
    assert meter.line(begin + 3).startswith("fetch: 2.0 MiB of 4.0 MiB, 682.7 KiB/s, ")
    # Only the last seconds count: a network that stands still is told.
    assert meter.line(begin + 19) == "fetch: 2.0 MiB of 4.0 MiB, 0 B/s"


def test_a_meter_writes_lines_where_nobody_watches_live(capfd, monkeypatch):
    monkeypatch.setattr("launcher.meter.LINE_SECONDS", 0.05)
    with Meter("push", 100) as meter:
        meter.moved(50)
        time.sleep(0.2)
    out, err = capfd.readouterr()
    assert out == ""
    assert "push: 50 B of 100 B" in err
    assert "\r" not in err


def test_a_meter_on_a_terminal_draws_one_line_and_wipes_it(place, store):
    import pty

    (store.root / "r/images/00001-00.png").write_bytes(b"p")
    main, other = pty.openpty()
    code = (
        "import sys, time\nfrom launcher.meter import Meter\n"
        "with Meter('fetch', 100) as meter:\n"
        "    meter.moved(50); time.sleep(0.5); meter.data('a/path'); time.sleep(0.5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=other, stdout=subprocess.PIPE, check=True, timeout=30
    )
    os.close(other)
    seen = os.read(main, 65536).decode()
    os.close(main)
    assert done.stdout == b"a/path\n"
    assert seen.count("50 B of 100 B") >= 2
    assert seen.endswith("\r\x1b[K")
    assert "\n" not in seen
