"""The launcher's verbs on real S3 servers, as a person runs them; a stand-in as the job."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import faultproxy
import pytest
import servers
import yaml
from faultproxy import fault_proxy
from faults import EVER, Fault
from standin import PROGRAM, launch, start

from jobs import commits, layout, retention
from jobs.access import Access
from jobs.specs import INLINE_PROMPT_BYTES
from jobs.stores import open_store
from launcher import cli
from launcher.backends import local

pytestmark = pytest.mark.store

LOCAL = ("--backend", "local")
TRAIN = ("submit", "train", *LOCAL)
SECRET = servers.SECRET_KEY


@pytest.fixture
def gateway(versitygw):
    return versitygw


@pytest.fixture
def there(gateway, monkeypatch):
    """Return the URL of an empty prefix; launcher and boto3 are set up to reach it."""
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", gateway.endpoint)
    return f"s3://{gateway.bucket()}/team/runs"


@pytest.fixture
def run(place, monkeypatch, capfd):
    """Run the launcher in this process, which is a second faster: boto3 is there already."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / ".cache"))
    monkeypatch.setenv("KUBECONFIG", str(place / "no-kubeconfig"))
    monkeypatch.setattr(local, "PROGRAM", PROGRAM)

    def call(*arguments, env=None):
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            code = cli.main(arguments)
        done = subprocess.CompletedProcess(arguments, code, *capfd.readouterr())
        assert SECRET not in done.stdout + done.stderr
        return done

    return call


def settings_here():
    """Return the variables that standin.py takes away from a process of its own."""
    return {k: v for k, v in os.environ.items() if k.startswith("LAUNCHER_")}


def store_of(url, gateway, scratch=None):
    return open_store(url, Access(endpoint=gateway.endpoint), scratch)


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def refused(done, code, error, hint=""):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("local: ")]
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert len(lines) <= 2
    assert hint in (lines[1] if len(lines) == 2 else "")


def test_a_local_run_with_its_records_in_s3_is_served_by_every_verb(place, run, there, gateway):
    done = run(*TRAIN, "--store", there, "--steps", "3", "--name", "first", "--wait")
    assert (done.returncode, done.stdout) == (0, "first\n")
    assert f"local: started first in {place}/runs/first, records in {there}/first" in done.stderr
    assert sorted(p.name for p in (place / "runs/first").iterdir()) == ["local"]
    # Without --store: the run's own record says where its records are.
    row = json.loads(run("status", "first", *LOCAL, "--json").stdout)
    assert (row["state"], row["committed"], row["step"]) == ("succeeded", 3, 3)
    assert row["records"] == f"{there}/first"
    assert json.loads(run("list", *LOCAL, "--json").stdout) == [row]
    assert run("logs", "first", *LOCAL, "--tail", "1").stdout.startswith("exit=0")
    assert run("fetch", "first", "out", *LOCAL).returncode == 0
    store = store_of(there, gateway)
    assert {f"first/{path}" for path in tree(place / "out")} <= {e.key for e in store.list("")}
    assert run("fetch", "first", "out", "--store", there).stdout == "", "it is the same run"
    (found,) = json.loads(run("list", "--store", there, "--json").stdout)
    assert (found["run"], found["state"], found["committed"]) == ("first", "succeeded", 3)
    # On another machine, where nothing is known of it.
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    env = settings_here()
    done = launch(elsewhere, "fetch", "first", "out", *LOCAL, "--store", there, env=env)
    assert done.returncode == 0
    assert tree(elsewhere / "out") == tree(place / "out")
    (found,) = json.loads(launch(elsewhere, "list", "--store", there, "--json", env=env).stdout)
    assert found["state"] == "unknown", "the stand-in leaves no result"
    again = (*TRAIN, "--store", there, "--steps", "3", "--name", "first")
    refused(launch(elsewhere, *again, env=env), 73, f"run 'first': exists in {there}", "--name")
    assert not (elsewhere / "runs").exists()


def test_data_that_is_not_there_burns_no_name(place, run, there, gateway):
    done = run(*TRAIN, "--data", f"{there}/pictures", "--name", "first")
    refused(done, 66, f"data '{there}/pictures' (from --data): there is nothing", "launcher push")
    assert not (place / "runs").exists()
    store_of(there, gateway).write("pictures/1.png", b"png")
    store_of(there, gateway).write("model.safetensors", b"w")
    given = ("--data", f"{there}/pictures", "--model", f"{there}/model.safetensors")
    done = run(*TRAIN, *given, "--name", "first", "--dry-run")
    assert done.returncode == 0, done.stderr
    done = run(*TRAIN, "--data", f"{there}/pict", "--name", "first", "--dry-run")
    refused(done, 66, "there is nothing in the store")


def test_a_stopped_run_goes_on_and_another_store_is_another_run(run, there, place):
    end = {"STANDIN_END": "75 stopped: on request"}
    wanted = (*TRAIN, "--name", "run", "--steps", "2", "--wait")
    assert run(*wanted, "--store", there, env=end).returncode == 70
    refused(run(*wanted), 73, 'store is "s3://', "--name")
    refused(run(*wanted, "--store", f"{there}2"), 73, "exists, unfinished, with other", "--name")
    done = run(*wanted, "--store", f"{there}/")
    assert done.returncode == 0
    assert "local: resuming run from its last commit" in done.stderr
    assert "attempt=2 restored=2" in done.stderr


def test_cancel_and_following_work_as_in_a_folder(place, run, there):
    env = {"STANDIN_SECONDS": "0.3"}
    run(*TRAIN, "--store", there, "--name", "run", "--steps", "99", env=env)
    while '"committed": 1' not in run("status", "run", *LOCAL, "--json").stdout:
        time.sleep(0.1)
    done = run("cancel", "run", *LOCAL)
    assert "run: stopped (75): stopped on request" in done.stderr
    found = json.loads(run("list", "--store", there, "--json").stdout)
    assert [(row["run"], row["state"], row["code"]) for row in found] == [("run", "stopped", 75)]


def test_a_lora_of_the_store_is_pinned_and_prompts_travel_through_it(place, run, there, gateway):
    run(*TRAIN, "--store", there, "--name", "cats", "--steps", "3", "--wait")
    (place / "p.txt").write_text(
        "".join(f"picture {n} of $(HOME)\n" for n in range(INLINE_PROMPT_BYTES // 40))
    )
    paint = ("submit", "infer", *LOCAL, "--store", there, "--prompts", "p.txt", "--name", "long")
    dry = run(*paint, "--lora", "cats", "--dry-run")
    spec = json.loads(yaml.safe_load(dry.stdout)["environment"]["JOB_SPEC"])
    assert (spec["lora"], spec["lora_step"]) == ("cats", 3)
    assert f"not there yet: {there}/{spec['prompts']['key']}" in dry.stderr
    store = store_of(there, gateway)
    assert not list(store.list(layout.CACHE))
    refused(run(*paint, "--lora", "nobody"), 66, "--lora 'nobody': no such run in s3://")
    assert run(*paint, "--lora", "cats", "--steps", "1").returncode == 0
    rows = store.read(spec["prompts"]["key"]).splitlines()
    assert json.loads(rows[4]) == {"line": 5, "prompt": "picture 4 of $(HOME)"}
    assert "not there yet" not in run(*paint, "--dry-run").stderr
    assert json.loads(run("status", "long", *LOCAL, "--json").stdout)["asked"] == len(rows)


def test_a_store_that_is_away_hides_no_state_and_starts_no_run(place, run, there, monkeypatch):
    end = {"STANDIN_END": "69 unavailable: store: away for 30 min"}
    run(*TRAIN, "--store", there, "--name", "run", "--wait", env=end)
    plan = place / "runs/run/local/plan.json"
    free = servers.free_port()
    endpoint = os.environ["LAUNCHER_STORE_ENDPOINT"]
    plan.write_text(plan.read_text().replace(endpoint, f"http://127.0.0.1:{free}"))
    done = run("status", "run", *LOCAL)
    assert done.returncode == 0
    assert "failed (69, unavailable)" in done.stdout
    assert "away for 30 min" in done.stdout
    assert f"run: {there}" in done.stderr
    assert run("list", *LOCAL).stdout.splitlines()[1].split()[:3] == ["run", "train", "failed"]
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", f"http://127.0.0.1:{free}")
    refused(run(*TRAIN, "--store", there, "--name", "new"), 69, there, "doctor")
    assert not (place / "runs/new").exists()
    refused(run("fetch", "run", "out", "--store", there), 69, there, "doctor")
    assert not (place / "out").exists()


WRONG = [
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 77, "SignatureDoesNotMatch"),
    ({"AWS_ACCESS_KEY_ID": "wrong"}, 77, "access key"),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 77, "no credentials"),
    ({"AWS_PROFILE": "nobody"}, 77, "nobody"),
    ({"LAUNCHER_STORE": "s3://no-such-bucket-here/x"}, 78, "no such bucket"),
]


@pytest.mark.parametrize(("env", "code", "error"), WRONG)
@pytest.mark.parametrize(
    "verb",
    [
        ("fetch", "run", "out"),
        ("ckpt", "list", "run"),
        ("list", "--store"),
        (*TRAIN, "--name", "run"),
        ("push", "model", "URL"),
    ],
    ids=lambda verb: verb[0],
)
def test_what_is_wrong_is_one_line_with_its_code(run, there, place, verb, env, code, error):
    (place / "model").mkdir()
    (place / "model/f").write_text("x")
    url = env.get("LAUNCHER_STORE", there)
    done = run(
        *(url if word == "URL" else word for word in verb), env={"LAUNCHER_STORE": there} | env
    )
    refused(done, code, error, "launcher doctor")
    assert done.stdout == ""
    assert url in done.stderr or "nobody" in done.stderr
    assert sorted(p.name for p in place.iterdir()) in (["model"], [".cache", "model"])


def test_two_views_of_one_store(run, there, gateway, place):
    """The pods' endpoint is unreachable from here; this machine's own one is used by every verb."""
    pods = {
        "LAUNCHER_STORE_ENDPOINT": "http://minio.storage.svc:9000",
        "LAUNCHER_STORE_ENDPOINT_HERE": gateway.endpoint,
        "LAUNCHER_STORE": there,
    }
    done = run(*TRAIN, "--name", "run", "--steps", "2", "--wait", env=pods)
    assert done.returncode == 0, done.stderr
    assert run("fetch", "run", "out", env=pods).returncode == 0
    image = ("--image", "registry.example/jobs:1")
    job = yaml.safe_load(run("submit", "train", *image, "--dry-run", env=pods).stdout)
    (main,) = job["spec"]["template"]["spec"]["containers"]
    values = {row["name"]: row.get("value") for row in main["env"]}
    assert values["JOB_STORE_ENDPOINT"] == "http://minio.storage.svc:9000"
    assert gateway.endpoint not in json.dumps(job)


# fetch


def committed(store, tmp_path, sizes, step=4):
    """Commit a checkpoint of files of random bytes; return the files."""
    folder = tmp_path / f"set-{secrets.token_hex(3)}"
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.bin").write_bytes(secrets.token_bytes(size))
    commits.commit(store, retention.checkpoint("r", step), folder)
    return tree(folder)


def checkpoint(folder, step=4):
    rows = tree(folder / "checkpoints" / layout.step_name(step))
    return {name: data for name, data in rows.items() if name not in ("MANIFEST.json", "COMMITTED")}


def test_an_interrupted_fetch_does_not_fetch_again_what_it_has(
    place, there, gateway, run, monkeypatch
):
    store = store_of(there, gateway)
    files = committed(store, place, [200_000_000, 3_000, 3_000])
    with fault_proxy(gateway.endpoint) as proxy:
        monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", proxy.endpoint)
        # The third range of the large file hangs: by then the first ones are on the disk.
        proxy.faults = [Fault("hang", "GET", r"0\.bin", first=6, times=EVER, seconds=60)]
        env = settings_here()
        process = start(place, "fetch", "r", "out", "--store", there, env=env)
        deadline = time.monotonic() + 60
        while len(proxy.found("GET", "0.bin")) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        assert not (place / "out/checkpoints/step-00000004/0.bin").exists()
        process.kill()
        process.wait()
        proxy.closing.set()
        before = sum(row.received for row in proxy.found("GET", "0.bin"))
        proxy.forget()
        assert before > 30_000_000
        done = run("fetch", "r", "out", "--store", there)
        assert done.returncode == 0, done.stderr
        assert checkpoint(place / "out") == files
        after = sum(row.received for row in proxy.found("GET", "0.bin"))
        assert after <= 200_000_000 - before + 16 * 2**20, "one part more at most"
        assert not list((place / "out").rglob(".part-*"))


def test_ctrl_c_does_not_wait_for_a_network_that_stands_still(place, there, gateway):
    committed(store_of(there, gateway), place, [40_000_000])
    with fault_proxy(gateway.endpoint) as proxy:
        proxy.faults = [Fault("hang", "GET", r"0\.bin", first=2, times=EVER, seconds=60)]
        env = settings_here() | {"LAUNCHER_STORE_ENDPOINT": proxy.endpoint}
        process = start(place, "fetch", "r", "out", "--store", there, env=env)
        while len(proxy.found("GET", "0.bin")) < 2:
            time.sleep(0.05)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - begin < 20
    assert process.returncode == 130
    assert err.count("interrupted: the same command goes on with it") == 1
    assert "Traceback" not in err


def test_bytes_that_were_damaged_in_the_store_never_appear(place, there, gateway, run):
    store = store_of(there, gateway)
    committed(store, place, [5_000])
    bucket, _, prefix = there.removeprefix("s3://").partition("/")
    path = gateway.root / bucket / prefix / "r/checkpoints/step-00000004/0.bin"
    path.write_bytes(b"x" * 5_000)
    done = run("fetch", "r", "out", "--store", there)
    refused(done, 66, "0.bin: is not the file that was committed", "--include")
    assert not (place / "out/checkpoints/step-00000004/0.bin").exists()
    done = run("ckpt", "verify", "r", "--store", there)
    told, _, rest = done.stderr.partition("\n")
    assert (done.returncode, told.startswith("step 4: ")) == (66, True)
    assert "0.bin: not the file" in told
    assert rest.startswith("error: run 'r': step 4: not what was committed\nhint: none that was")


def test_a_full_disk_while_fetching_is_one_line(place, there, gateway, missing):
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        missing("store", "needs root and mount namespaces")
    committed(store_of(there, gateway), place, [60_000_000])
    (place / "out").mkdir()
    script = 'mount -t tmpfs -o size=20m none out && "$0" "$@"; code=$?; find out; exit $code'
    env = settings_here()
    done = launch(
        place, "fetch", "r", "out", "--store", there, env=env,
        before=("unshare", "-m", "sh", "-c", script),
    )  # fmt: skip
    assert done.returncode == 69
    error, hint = done.stderr.splitlines()
    assert error == "error: folder out: the disk is full"
    assert "make room" in hint
    assert "/0.bin\n" not in done.stdout.replace("/.part-0.bin\n", "")


def test_a_push_onto_a_full_disk_blames_the_disk(place, missing):
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        missing("store", "needs root and mount namespaces")
    (place / "model").mkdir()
    (place / "model" / "w.bin").write_bytes(bytes(5_000_000))
    (place / "disk").mkdir()
    script = 'mount -t tmpfs -o size=2m none disk && "$0" "$@"'
    done = launch(place, "push", "model", "disk/set", before=("unshare", "-m", "sh", "-c", script))
    assert done.returncode == 69
    assert done.stderr.startswith(f"error: store {place}/disk: the disk is full\nhint: make room")


def test_watching_a_run_in_s3_ends_with_its_result(place, there, gateway, run, monkeypatch):
    store = store_of(there, gateway)
    files = committed(store, place, [5_000], step=1)
    env = settings_here()
    code = (
        "import sys\nfrom launcher import cli, data\ndata.WATCH_SECONDS = 0.2\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "fetch", "r", "out", "--store", there, "--watch"],
        cwd=place, env={**os.environ, **env, "XDG_CACHE_HOME": str(place / ".cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not (place / "out/checkpoints/step-00000001/COMMITTED").exists():
            time.sleep(0.05)
        assert checkpoint(place / "out", 1) == files
        second = committed(store, place, [5_000], step=2)
        while not (place / "out/checkpoints/step-00000002/COMMITTED").exists():
            time.sleep(0.05)
        assert checkpoint(place / "out", 2) == second
        store.write("r/result.json", b"{}")
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "out/result.json"
    assert err.startswith("fetched ")


# push


@pytest.fixture
def model(place):
    folder = place / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/w.bin").write_bytes(secrets.token_bytes(100_000_000))
    for number in range(20):
        (folder / f"f{number}.txt").write_text(str(number))
    return folder


def test_push_sends_a_folder_once_and_a_job_can_read_it(place, there, gateway, run, model, server):
    url = f"{there}/sets/model"
    with fault_proxy(gateway.endpoint) as proxy:
        env = {"LAUNCHER_STORE_ENDPOINT": proxy.endpoint}
        done = run("push", "model", url, env=env)
        assert (done.returncode, done.stdout) == (0, f"{url}\n"), done.stderr
        assert 100_000_000 <= proxy.sent() <= 100_100_000
        proxy.forget()
        again = run("push", "model", url, env=env)
        assert (again.returncode, again.stdout) == (0, f"{url}\n")
        assert "nothing was sent" in again.stderr
        assert not [row for row in proxy.requests if row.method not in ("GET", "HEAD")]
    commits.download(store_of(url, gateway), "", place / "back")
    assert tree(place / "back") == tree(model)


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_an_interrupted_push_sends_only_the_rest(place, there, gateway, run, model, how):
    url = f"{there}/model"
    with fault_proxy(gateway.endpoint) as proxy:
        env = {"LAUNCHER_STORE_ENDPOINT": proxy.endpoint}
        # The large file is on its way for a while; the small ones are through by then.
        proxy.faults = [Fault("hang", "PUT", r"w\.bin", first=5, times=EVER, seconds=40)]
        process = start(place, "push", "model", url, env=env)
        deadline = time.monotonic() + 60
        while (
            len(proxy.found("PUT", "w.bin")) < 6 or len(proxy.found("PUT", ".txt")) < 20
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        proxy.closing.set()
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode == (-9 if how == "kill" else 130)
        before = proxy.sent(key="w.bin")
        assert 30_000_000 < before < 100_000_000
        assert not commits.is_committed(store_of(there, gateway), "model")
        proxy.forget()
        done = run("push", "model", url, env=env)
        assert done.returncode == 0, done.stderr
        assert proxy.sent(key="w.bin") <= 100_000_000 - before + 16 * 2**20
        assert not proxy.found("PUT", ".txt"), "what is there whole is not sent again"
    assert commits.verify_set(store_of(there, gateway), "model") == commits.describe(model)


def test_a_place_with_something_else_is_told(place, there, gateway, run, model):
    store = store_of(there, gateway)
    store.write("model/claim.json", b"{}")
    done = run("push", "model", f"{there}/model")
    refused(done, 73, f"{there}/model: holds 'claim.json'", "another URL")
    assert [entry.key for entry in store.list("")] == ["model/claim.json"]


# ckpt


def test_checkpoints_are_listed_pinned_and_pruned(place, there, gateway, run):
    store = store_of(there, gateway)
    for step in (1, 2, 3):
        committed(store, place, [1_000], step=step)
    client = gateway.client()
    bucket, _, prefix = there.removeprefix("s3://").partition("/")
    upload = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/r/checkpoints/x/big")
    store.write("r/checkpoints/step-00000009/half.bin", b"half")
    wanted = ("r", "--store", there)
    assert run("ckpt", "pin", "r", "1", "--store", there).returncode == 0
    rows = json.loads(run("ckpt", "list", *wanted, "--json").stdout)
    assert [(row["step"], row["pinned"], row["newest"]) for row in rows] == [
        (1, True, False), (2, False, False), (3, False, True),
    ]  # fmt: skip
    prune = ("ckpt", "prune", *wanted, "--keep-last", "1")
    assert run(*prune).stdout.splitlines() == ["r/checkpoints/step-00000002 (1000 B)"]
    dry = run(*prune, "--older-than", "0")
    assert dry.stdout.splitlines() == [
        "r/checkpoints/step-00000002 (1000 B)",
        "r/checkpoints/step-00000009 (never committed)",
        "r/checkpoints/x/big (upload that was not ended)",
    ]
    assert commits.committed_steps(store, "r") == [1, 2, 3]
    assert run(*prune, "--older-than", "0", "--yes").returncode == 0
    assert commits.committed_steps(store, "r") == [1, 3]
    assert not list(store.list("r/checkpoints/step-00000009"))
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert upload["UploadId"]
    assert run("ckpt", "verify", *wanted).stdout.splitlines() == [
        "step 1: 1 file, 1000 B, verified", "step 3: 1 file, 1000 B, verified",
    ]  # fmt: skip


# doctor


def doctor(run, url, **env):
    done = run("doctor", "--store", url, "--json", env=env)
    return done, {row["check"]: row for row in json.loads(done.stdout)["checks"]}


def test_doctor_tries_all_and_leaves_nothing(run, server, bucket, monkeypatch):
    monkeypatch.setenv("LAUNCHER_STORE_ENDPOINT", server.endpoint)
    done = run("doctor", "--store", f"s3://{bucket}/team")
    assert done.returncode == 0, done.stderr + done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * 8
    for name in ("PUT", "GET", "list", "multipart", "conditional PUT", "DELETE"):
        assert f" {name} " in done.stdout.replace("\n", " \n")
    assert f"s3://{bucket}/team: works (region us-east-1, addressing path)" in done.stderr
    client = server.client()
    assert not client.list_objects_v2(Bucket=bucket).get("Contents")
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@pytest.mark.parametrize(("env", "code", "error"), WRONG)
def test_doctor_names_the_setting_that_is_wrong(run, there, env, code, error):
    done, checks = doctor(run, env.get("LAUNCHER_STORE", there), **env)
    assert done.returncode == code
    (wrong,) = [row for row in checks.values() if not row["ok"]]
    assert wrong["setting"] == ("store" if code == 78 else "credentials")
    assert error in wrong["text"]
    lines = [line for line in done.stderr.splitlines() if not line.startswith("tried ")]
    assert [line.split()[0] for line in lines] == ["error:", "hint:"]
    assert error in lines[0]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{port}", "http://no-such-host.invalid"])
def test_doctor_tells_a_dead_endpoint_at_once(run, there, endpoint):
    begin = time.monotonic()
    env = {"LAUNCHER_STORE_ENDPOINT": endpoint.format(port=servers.free_port())}
    done, checks = doctor(run, there, **env)
    assert time.monotonic() - begin < 20
    assert done.returncode == 69
    assert checks.keys() == {"connect"}
    assert checks["connect"]["setting"] == "store_endpoint"


def test_doctor_finds_the_addressing(run, there, gateway):
    port = gateway.endpoint.rpartition(":")[2]
    env = {
        "LAUNCHER_STORE_ENDPOINT": f"http://localhost:{port}",
        "LAUNCHER_STORE_ADDRESSING": "virtual",
    }
    done = run("doctor", "--store", there, env=env)
    assert done.returncode == 78
    assert done.stdout.splitlines()[-1] == 'store_addressing = "path"'
    assert "wrong PUT              store_addressing: " in done.stdout
    assert 'hint: in launcher.toml: store_addressing = "path"' in done.stderr
    env["LAUNCHER_STORE_ADDRESSING"] = "path"
    assert run("doctor", "--store", there, env=env).returncode == 0


@contextmanager
def odd_server(gateway, odd):
    """Run a server before the gateway; `odd(handler)` answers a request itself and says so."""

    class Handler(faultproxy._Handler):
        def serve(self):
            if not odd(self):
                super().serve()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

    with fault_proxy(gateway.endpoint) as behind:
        kind = type("Odd", (Handler,), {"proxy": behind})
        listener = faultproxy._Listener(("127.0.0.1", 0), kind)
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.server_address[1]}"
        finally:
            listener.shutdown()
            listener.server_close()


def answer(handler, status, code, message, **headers):
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    list(handler._body())
    handler._send(status, headers, body)
    return True


def test_doctor_finds_the_region(run, there, gateway):
    def elsewhere(handler):
        if "/us-east-1/" in handler.headers["Authorization"]:
            return False
        message = "the region 'eu-west-9' is wrong; expecting 'us-east-1'"
        return answer(handler, 400, "AuthorizationHeaderMalformed", message)

    with odd_server(gateway, elsewhere) as endpoint:
        env = {"LAUNCHER_STORE_ENDPOINT": endpoint, "LAUNCHER_STORE_REGION": "eu-west-9"}
        done = run("doctor", "--store", there, env=env)
        assert done.returncode == 78, done.stdout
        assert done.stdout.splitlines()[-1] == 'store_region = "us-east-1"'
        assert "wrong PUT              store_region: " in done.stdout
        refused(run("ckpt", "list", "r", "--store", there, env=env), 78, "store_region", "doctor")


def test_doctor_finds_the_checksum(run, there, gateway):
    """Huawei's OBS refuses the checksum headers of 2024."""

    def old(handler):
        new = any("checksum" in name.lower() for name in handler.headers)
        return new and answer(handler, 400, "InvalidArgument", "x-amz-checksum-sha256")

    with odd_server(gateway, old) as endpoint:
        env = {"LAUNCHER_STORE_ENDPOINT": endpoint}
        done = run("doctor", "--store", there, env=env)
        assert done.returncode == 78, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == 'store_checksum = "md5"'
        env["LAUNCHER_STORE_CHECKSUM"] = "md5"
        assert run("doctor", "--store", there, env=env).returncode == 0


@pytest.mark.parametrize(
    ("method", "query", "check"),
    [("PUT", r"^$", "PUT"), ("DELETE", r"^$", "DELETE"), ("POST", "uploads", "multipart"),
     ("GET", "list-type", "list")],
)  # fmt: skip
def test_doctor_tells_what_a_key_may_not_do(run, there, gateway, method, query, check):
    with fault_proxy(gateway.endpoint) as proxy:
        proxy.faults = [
            Fault("answer", method, "", query, times=EVER, status=403, code="AccessDenied")
        ]
        done, checks = doctor(run, there, LAUNCHER_STORE_ENDPOINT=proxy.endpoint)
    assert done.returncode == 77, done.stdout
    assert not checks[check]["ok"]
    assert checks[check]["setting"] == "credentials"
    assert checks["connect"]["ok"]
    assert ("tried" in done.stderr) == (check == "PUT"), "no other setting gives a right"


def test_a_check_that_fails_leaves_nothing_either(run, there, gateway):
    with fault_proxy(gateway.endpoint) as proxy:
        proxy.faults = [Fault("answer", "DELETE", times=1, status=403, code="AccessDenied")]
        done, checks = doctor(run, there, LAUNCHER_STORE_ENDPOINT=proxy.endpoint)
    assert done.returncode == 77
    assert not checks["DELETE"]["ok"]
    assert not list(store_of(there, gateway).list(""))


def test_who_may_not_list_uploads_is_told_what_it_costs(run, there, gateway):
    with fault_proxy(gateway.endpoint) as proxy:
        proxy.faults = [
            Fault("answer", "GET", "", "uploads", times=EVER, status=403, code="AccessDenied")
        ]
        done, checks = doctor(run, there, LAUNCHER_STORE_ENDPOINT=proxy.endpoint)
        assert done.returncode == 0, done.stdout
        assert "refused, so that uploads that nobody ends stay" in checks["list uploads"]["text"]
        store_of(there, gateway).write("r/claim.json", b"{}")
        env = {"LAUNCHER_STORE_ENDPOINT": proxy.endpoint}
        done = run("ckpt", "prune", "r", "--store", there, env=env)
        assert done.returncode == 0
        assert "interrupted uploads: not looked for: " in done.stderr


def test_a_server_without_conditions_is_told_and_no_failure(run, there, gateway):
    def ignorant(handler):
        if "If-None-Match" not in handler.headers:
            return False
        bucket, _, key = handler.path.lstrip("/").partition("/")
        body = b"".join(handler._body())
        tag = gateway.client().put_object(Bucket=bucket, Key=key, Body=body)["ETag"]
        handler._send(200, {"ETag": tag}, b"")
        return True

    def without(handler):
        given = "If-None-Match" in handler.headers
        return given and answer(handler, 501, "NotImplemented", "If-None-Match")

    for odd, told in ((ignorant, "ignores the condition"), (without, "the server has none")):
        with odd_server(gateway, odd) as endpoint:
            done, checks = doctor(run, there, LAUNCHER_STORE_ENDPOINT=endpoint)
        assert done.returncode == 0, done.stderr
        assert told in checks["conditional PUT"]["text"]


def test_doctor_tells_a_certificate_that_nobody_signed(tmp_path, run, versitygw, missing):
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout",
         tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        missing("store", "openssl is needed for a certificate")
    flags = ("--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem"))
    with servers.server("versitygw", tmp_path / "tls", *flags) as gateway:
        (gateway.root / "team").mkdir()
        env = {"LAUNCHER_STORE_ENDPOINT": gateway.endpoint}
        done, checks = doctor(run, "s3://team/x", **env)
        assert done.returncode == 78
        assert checks["PUT"]["setting"] == "certificate"
        assert "AWS_CA_BUNDLE" in done.stderr
        done, _ = doctor(run, "s3://team/x", **env, AWS_CA_BUNDLE=str(tmp_path / "cert.pem"))
        assert done.returncode == 0, done.stdout
        plain = {"LAUNCHER_STORE_ENDPOINT": gateway.endpoint.replace("https", "http")}
        done = run("doctor", "--store", "s3://team/x", env={
            **plain, "AWS_CA_BUNDLE": str(tmp_path / "cert.pem")})  # fmt: skip
        assert done.stdout.splitlines()[-1] == f'store_endpoint = "{gateway.endpoint}"'
