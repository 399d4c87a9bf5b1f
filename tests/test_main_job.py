"""The main job as a user runs it: the launcher's own commands, real msrun, real workers, on CPU.

One store for all tests of the session, so that each graph is compiled once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from readme.draw import cell

from jobs import commits, layout
from jobs.msrun import descendants
from jobs.stores import FileStore

pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

LAUNCHER = str(Path(sys.executable).with_name("launcher"))
TRAIN = ("submit", "train", "--backend", "local", "--wait")
PLAIN = (
    "--set", "validation_prompts=[]", "--set", "log_every=1", "--set", "batch_size=1",
    "--set", "save_every=20", "--set", "lora_targets=[to_q, conv1]",
)  # fmt: skip
"""A shorter run, and a smaller graph, for the tests that are not about pictures."""


class Here:
    """A folder to run the launcher in, as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.store = FileStore(self.runs)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        # One core per worker whatever the number of workers: it is part of a result's bits.
        env = {**os.environ, "LAUNCHER_THREADS": "1", **variables}
        return subprocess.Popen(
            [LAUNCHER, *arguments],
            cwd=self.folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, code: int = 0, **variables: str) -> tuple[str, str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    def records(self, run: str, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.runs / run / name).read_text().splitlines()]

    def result(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / run / layout.RESULT).read_text())
        return found

    def supervisor(self, run: str) -> int:
        return int((self.runs / run / "local" / "pid").read_text().split()[0])

    def final(self, run: str) -> dict[str, bytes]:
        """Return the files of the newest committed checkpoint, verified."""
        step = commits.committed_steps(self.store, run)[-1]
        folder = self.folder / "final" / run
        commits.download(self.store, f"{run}/checkpoints/{layout.step_name(step)}", folder)
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    return Here(tmp_path_factory.mktemp("main"))


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    return not any(map(lives, pids))


def test_train_then_paint_with_it(here: Here) -> None:
    out, err = here.run(*TRAIN, "--npus", "2", "--name", "style")
    assert out == "style\n"
    assert err.startswith("local: model=tiny data=tiny store=./runs")
    assert " jobs.runtime jobs=" in err
    assert "[0] " in err
    rows = here.records("style", layout.METRICS)
    assert [row["step"] for row in rows] == [1, *range(5, 165, 5)]
    result = here.result("style")
    assert result["npus"] == 2
    assert result["steps"] == 160
    assert {"compile_s", "ms_per_step", "img_s"} <= result.keys()
    assert commits.committed_steps(here.store, "style") == [40, 80, 120, 160]
    assert {"state.safetensors", "state.json", layout.LORA_FILE} == here.final("style").keys()
    assert {row["prompt"] for row in here.records("style", layout.PICTURES)} == {
        "a red circle",
        "a blue square on the left",
    }

    prompts = here.folder / "prompts.txt"
    prompts.write_text("# two shapes\na red circle\n\na blue square on the left\n")
    paint = ("submit", "infer", "--backend", "local", "--prompts", "prompts.txt", "--wait")
    here.run(*paint, "--npus", "2", "--lora", "style", "--name", "painted")
    here.run(*paint, "--npus", "1", "--lora", "style", "--name", "again")
    here.run(*paint, "--npus", "2", "--name", "base")
    rows = here.records("painted", layout.PICTURES)
    assert [(row["line"], row["file"]) for row in rows] == [
        (2, "images/00002-00.png"),
        (4, "images/00004-00.png"),
    ]
    for row in rows:
        path = here.runs / "painted" / row["file"]
        assert commits.sha256_of(path) == row["sha256"]
        assert Image.open(path).size == (128, 128)
        same = (here.runs / "again" / row["file"]).read_bytes()
        other = (here.runs / "base" / row["file"]).read_bytes()
        assert path.read_bytes() == same, "pictures must not depend on the number of workers"
        assert path.read_bytes() != other, "the LoRA must show"
    assert here.result("painted")["pictures"] == 2


def test_the_pictures_of_the_readme_are_painted_again(here: Here) -> None:
    """One of the base model and one of the main job's LoRA, as tests/readme/draw.py laid them out.

    Equal on a CPU like the one that they were made on; another's sums differ in their last bits,
    and a training's more than a painting's.
    """
    root = Path(__file__).parents[1]
    prompts = str(root / "prompts" / "tiny.txt")
    paint = ("submit", "infer", "--backend", "local", "--npus", "2", "--prompts", prompts, "--wait")
    here.run(*paint, "--only", "4", "--name", "before")
    here.run(*paint, "--only", "4", "--name", "after", "--lora", "style")
    shown = Image.open(root / "tests" / "readme" / "before-after.png").convert("RGB")
    draw = (sys.executable, str(root / "tests" / "readme" / "draw.py"), "grid", "two.png")
    runs = ("before", "after")
    subprocess.run([*draw, *runs, "--lines", "4"], cwd=here.folder, check=True)
    bad = subprocess.run([*draw, "before", "base"], cwd=here.folder, capture_output=True, text=True)
    assert bad.returncode == 2
    assert "others than runs/before has" in bad.stderr
    two = Image.open(here.folder / "two.png")
    cells = []
    for row, run in enumerate(runs):
        made = np.asarray(cell(two, row, 0), np.int16)
        cells.append(np.asarray(cell(shown, row, 1), np.int16))
        assert (np.abs(made - cells[row]) > 32).mean() < 0.02, run
    assert (np.abs(cells[0] - cells[1]) > 32).mean() > 0.2, "the two look alike"


def readme_commands() -> list[list[str]]:
    """Return the launcher's commands in the README's blocks, placeholders filled in.

    Blocks with a name are run as they stand: on a cluster those of the first run (tests/e2e).
    """
    import re
    import shlex

    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^(<!-- \w+ -->\n)?```sh\n(.*?)^```$", text, re.M | re.S)
    lines = [line for name, block in blocks if not name for line in block.splitlines()]
    found = [re.split(r" \| | > ", line)[0] for line in lines if line.startswith("launcher ")]
    places = {"RUN": "style", "$RUN": "style", "DIR": "copy", "URL": "shelf"}
    return [[places.get(w, w) for w in shlex.split(line, comments=True)[1:]] for line in found]


def test_the_other_commands_of_the_readme_work(here: Here) -> None:
    """After the main job: each as it stands there, submissions as dry runs."""
    commands = readme_commands()
    assert {words[0] for words in commands} == {
        "submit", "list", "status", "logs", "cancel", "fetch", "push", "ckpt", "report", "doctor",
        "config",
    }  # fmt: skip
    from jobs.tiny import folders

    folders.write(here.folder / "my-pictures", folders.flat(0, range(1)))
    (here.folder / "sdxl").mkdir()
    (here.folder / "sdxl" / "model_index.json").write_text("{}")
    (here.folder / "prompts").mkdir()
    for name in ("tiny.txt", "drawings.txt"):
        (here.folder / "prompts" / name).write_text("a red circle\n")
    for words in commands:
        dry = ["--dry-run"] if words[0] == "submit" and "--dry-run" not in words else []
        settings = {"LAUNCHER_IMAGE": "registry.example/jobs:1", "LAUNCHER_STORE": "s3://b/p"}
        cluster = words[0] == "submit" and "--backend" not in words
        here_set = {"LAUNCHER_STORE": "./runs"} if words[0] == "doctor" else {}
        here.run(*words, *dry, **(settings if cluster else here_set))
    assert (here.folder / "copy" / "result.json").is_file()
    assert (here.folder / "report-style" / "index.html").is_file()
    assert (here.folder / "shelf" / layout.COMMITTED).is_file()


def test_a_restart_paints_only_what_is_missing(here: Here) -> None:
    """Take pictures and result of a finished run away: as if it had been killed half-way."""
    prompts = here.folder / "six.txt"
    prompts.write_text("".join(f"a red circle number {n}\n" for n in range(6)))
    paint = ("submit", "infer", "--backend", "local", "--prompts", "six.txt", "--wait")
    submit = (*paint, "--npus", "2", "--name", "cut", "--set", "steps=2")
    here.run(*submit)
    run = here.runs / "cut"
    before = {path.name: path.read_bytes() for path in (run / "images").iterdir()}
    rows = here.records("cut", layout.PICTURES)
    (run / layout.PICTURES).write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    for row in rows[2:]:
        (run / row["file"]).unlink()
    (run / layout.RESULT).unlink()
    (run / "local" / "termination").unlink()
    kept = {name: (run / "images" / name).stat().st_mtime_ns for name in sorted(before)[:2]}
    _, err = here.run(*submit)
    assert "resuming cut" in err
    assert {path.name: path.read_bytes() for path in (run / "images").iterdir()} == before
    assert {name: (run / "images" / name).stat().st_mtime_ns for name in kept} == kept
    assert [row["line"] for row in here.records("cut", layout.PICTURES)] == list(range(1, 7))
    assert here.result("cut")["pictures"] == 6


def test_training_lowers_the_loss(random_sdxl: Path, here: Here) -> None:
    """From random weights, whose loss has far to fall."""
    submit = (*TRAIN, "--npus", "2", "--name", "lower", "--model", str(random_sdxl))
    words = ("--data", "tiny", "--steps", "60", "--lr", "1e-3", "--set", "log_every=5")
    here.run(*submit, *words, "--set", "validation_prompts=[]")
    rows = here.records("lower", layout.METRICS)
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"], "training must train"


def test_a_diverged_run_ends_for_good(random_sdxl: Path, here: Here) -> None:
    """With a model whose last layer has weights past all measure: no setting may be that wild."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(random_sdxl, here.folder / "huge")
    [path] = (here.folder / "huge" / "unet").glob("*.safetensors")
    weights = load_file(path)
    weights["conv_out.weight"] = weights["conv_out.weight"] * np.float32(1e30)
    save_file(weights, path, {"format": "pt"})
    submit = (*TRAIN, *PLAIN, "--npus", "1", "--name", "wild", "--model", "./huge")
    _, err = here.run(*submit, "--steps", "5", code=70)
    assert "step 1: the loss is inf" in err
    assert "lower learning_rate" in err
    assert "70" in (here.runs / "wild" / "local" / "termination").read_text()
    _, err = here.run(*submit, "--steps", "5", code=73)
    assert "failed for good" in err


def test_bad_data_is_named_and_nothing_is_committed(here: Here) -> None:
    from jobs.tiny import folders

    pictures = here.folder / "pictures"
    folders.write(pictures, folders.flat(0, range(4)))
    (pictures / "00002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    _, err = here.run(*TRAIN, *PLAIN, "--npus", "2", "--name", "bad", "--data", "pictures", code=70)
    reason = (here.runs / "bad" / "local" / "termination").read_text()
    assert reason.startswith("65 bad data: ")
    assert str(pictures / "00002.png") in reason
    assert reason.strip().partition(" ")[2] in err
    assert commits.committed_steps(here.store, "bad") == []


@pytest.mark.slow
def test_two_workers_compute_what_one_does_with_twice_the_batch(here: Here) -> None:
    here.run(*TRAIN, *PLAIN, "--steps", "12", "--npus", "2", "--name", "two")
    one = ("--npus", "1", "--set", "batch_size=2", "--name", "one")
    here.run(*TRAIN, *PLAIN, "--steps", "12", *one)
    parts = ("--npus", "1", "--set", "accumulate=2", "--name", "parts")
    here.run(*TRAIN, *PLAIN, "--steps", "12", *parts)
    two, one_, parts_ = (
        [row["loss"] for row in here.records(name, layout.METRICS)]
        for name in ("two", "one", "parts")
    )
    assert len(two) == 12
    assert np.allclose(two, one_, rtol=1e-4)
    assert np.allclose(parts_, one_, rtol=1e-4)
    assert two != sorted(two), "a constant curve would prove nothing"


EVERYTHING = (
    "accumulate=2", "lr_schedule=cosine", "warmup_steps=2", "snr_gamma=5", "noise_offset=0.05",
    "prediction_type=v_prediction", "caption_dropout=0.3", "flip=true",
)  # fmt: skip
OF_LORA = (
    "lora_dropout=0.2", "lora_targets=[to_q, ff.net.2, conv1]", "text_encoder_learning_rate=5e-4",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision", "more"),
    [
        ("vanilla", "fp32", (*EVERYTHING, "ema_decay=0.9")),
        ("lora-te", "fp32", (*EVERYTHING, *OF_LORA)),
        ("lora", "fp16", ()),
    ],
)
def test_the_other_rows_train_and_resume_their_state(
    here: Here, method: str, precision: str, more: tuple[str, ...]
) -> None:
    name = f"{method}-{precision}"
    sets = [word for pair in (*more, "save_every=4") for word in ("--set", pair)]
    row = ("--method", method, "--precision", precision, "--npus", "1", "--name", name, *sets)
    here.run(*TRAIN, *PLAIN, *row, "--steps", "8")
    rows = here.records(name, layout.METRICS)
    assert len(rows) == 8
    assert np.isfinite([row["loss"] for row in rows]).all()
    final = here.final(name)
    assert (layout.LORA_FILE in final) == (method != "vanilla")
    assert ("pipeline/unet/diffusion_pytorch_model.safetensors" in final) == (method == "vanilla")
    # Back to the first commit: the second half is done again and must come out the same.
    run = here.runs / name
    for path in (run / "checkpoints" / "step-00000008" / layout.COMMITTED, run / layout.RESULT):
        path.unlink()
    (run / "local" / "termination").unlink()
    here.run(*TRAIN, *PLAIN, *row, "--steps", "8")
    assert here.final(name) == final
    again = here.records(name, layout.METRICS)
    told = ("step", "loss", "lr", "grad_norm", "loss_scale")
    assert [[row[key] for key in told] for row in again] == [
        [row[key] for key in told] for row in rows
    ]
    assert [row["attempt"] for row in again] == [1] * 4 + [2] * 4


def test_a_run_whose_time_is_over_succeeds_with_what_it_has(here: Here) -> None:
    submit = (*TRAIN, *PLAIN, "--npus", "1", "--name", "timed", "--steps", "1000")
    here.run(*submit, "--set", "max_minutes=0.01")
    result = here.result("timed")
    assert result["ended"] == "max_minutes"
    assert 1 <= result["steps"] < 1000
    assert commits.committed_steps(here.store, "timed") == [result["steps"]]


KILLED = (*TRAIN, *PLAIN, "--npus", "2", "--steps", "150", "--set", "save_every=7")


@pytest.fixture(scope="session")
def undisturbed(here: Here) -> dict[str, bytes]:
    here.run(*KILLED, "--name", "calm")
    return here.final("calm")


@pytest.mark.chaos
def test_kill_9_at_random_moments_changes_no_bit(here: Here, undisturbed: dict[str, bytes]) -> None:
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    print(f"seed of the moments: {seed}")
    resumed_from = []
    for number in range(3):
        process = here.start(*KILLED, "--name", "storm")
        wait_for(lambda: (here.runs / "storm" / "local" / "pid").exists())
        wait_for(lambda: len(descendants(here.supervisor("storm"))) > 0)
        before = commits.committed_steps(here.store, "storm")
        # The first one anywhere from the start on, the others in the middle of training.
        time.sleep(moments.uniform(0, 12))
        if number:
            wait_for(lambda b=before: commits.committed_steps(here.store, "storm") != b)
            time.sleep(moments.uniform(0, 3))
        supervisor = here.supervisor("storm")
        tree = [supervisor, *descendants(supervisor)]
        # Only the supervisor: the kernel must take the rest of the tree with it.
        os.kill(supervisor, signal.SIGKILL)
        wait_for(lambda t=tree: gone(t), seconds=20)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 70, err
        resumed_from.append(commits.committed_steps(here.store, "storm")[-1:])
    _, err = here.run(*KILLED, "--name", "storm")
    assert f"restored={resumed_from[-1][0]}" in err
    assert resumed_from[-1][0] >= 14
    assert here.final("storm") == undisturbed
    steps = [row["step"] for row in here.records("storm", layout.METRICS)]
    assert steps == list(range(1, 151))
    calm, storm = ([r["loss"] for r in here.records(n, layout.METRICS)] for n in ("calm", "storm"))
    assert storm == calm


@pytest.mark.chaos
def test_cancel_commits_and_the_same_command_goes_on(
    here: Here, undisturbed: dict[str, bytes]
) -> None:
    process = here.start(*KILLED, "--name", "paused")
    metrics = here.runs / "paused" / layout.METRICS
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 10)
    here.run("cancel", "paused")
    process.communicate(timeout=60)
    assert process.returncode == 70
    code, reason = (here.runs / "paused" / "local" / "termination").read_text().split(" ", 1)
    assert code == "75", reason
    committed = commits.committed_steps(here.store, "paused")[-1]
    assert committed % 7, "the stop itself must save a step"
    _, err = here.run(*KILLED, "--name", "paused")
    assert f"restored={committed}" in err
    assert here.final("paused") == undisturbed


@pytest.mark.chaos
def test_nothing_is_left_of_a_run_killed_while_its_workers_start(here: Here) -> None:
    process = here.start(*KILLED, "--name", "early")
    pid_file = here.runs / "early" / "local" / "pid"
    wait_for(pid_file.exists)
    supervisor = here.supervisor("early")
    wait_for(lambda: len(descendants(supervisor)) >= 4)  # uploader, msrun, scheduler, a worker
    tree = descendants(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: gone(tree), seconds=20)


@pytest.mark.chaos
def test_a_stop_waits_for_a_slow_save(here: Here, undisturbed: dict[str, bytes]) -> None:
    """Rank 0 stopped by SIGSTOP for a while, as if it wrote 31 GB; rank 1 is long through."""
    process = here.start(*KILLED, "--name", "slow")
    metrics = here.runs / "slow" / layout.METRICS
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    supervisor = here.supervisor("slow")
    first = worker(supervisor, 0)
    draft = here.runs / "slow" / "local" / "work" / "drafts"
    saving = here.start("cancel", "slow")
    wait_for(lambda: (draft.is_dir() and any(draft.iterdir())) or not lives(first), 30)
    if lives(first):
        os.kill(first, signal.SIGSTOP)
        time.sleep(6)
        os.kill(first, signal.SIGCONT)
    process.communicate(timeout=90)
    saving.communicate(timeout=30)
    assert (here.runs / "slow" / "local" / "termination").read_text().startswith("75 ")


def worker(run_pid: int, rank: int) -> int:
    """Return the pid of the worker with this rank below a supervisor."""
    for pid in descendants(run_pid):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"MS_ROLE=MS_WORKER" in variables and b"RANK_ID=%d" % rank in variables:
            return pid
    return 0


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("blow", "code", "words"),
    [(signal.SIGKILL, "137", "as a rule for memory"), (signal.SIGSTOP, "79", "worker 0: silent")],
)
def test_a_worker_that_is_killed_or_hangs_ends_the_run(
    here: Here, blow: signal.Signals, code: str, words: str
) -> None:
    name = f"hit-{code}"
    variables = {"LAUNCHER_STALL_MINUTES": "1"} if code == "79" else {}
    process = here.start(*KILLED, "--name", name, **variables)
    metrics = here.runs / name / layout.METRICS
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    supervisor = here.supervisor(name)
    tree = descendants(supervisor)
    for pid in tree if blow == signal.SIGSTOP else [worker(supervisor, 1)]:
        if b"jobs.sync" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, blow)
    process.communicate(timeout=150)
    assert process.returncode == 70
    reason = (here.runs / name / "local" / "termination").read_text()
    assert reason.startswith(code + " ")
    assert words in reason
    assert gone(tree)


@pytest.mark.slow
def test_a_worker_that_lags_is_waited_for(here: Here) -> None:
    """On a busy machine one worker may compile, or wait for a core, longer than another."""
    process = here.start(*KILLED, "--name", "lags")
    metrics = here.runs / "lags" / layout.METRICS
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    pid = worker(here.supervisor("lags"), 1)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(40)  # MindSpore's own limit is 30 s
    os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]


@pytest.mark.chaos
def test_a_store_that_goes_away_ends_the_run_and_says_so(here: Here) -> None:
    variables = {"LAUNCHER_STORE_DEADLINE_MINUTES": "0"}
    process = here.start(*KILLED, "--name", "lost", **variables)
    run = here.runs / "lost"
    wait_for(lambda: len(commits.committed_steps(here.store, "lost")) > 0)
    (run / "checkpoints").rename(run / "moved")
    (run / "checkpoints").write_bytes(b"a file where the folder was")
    process.communicate(timeout=120)
    assert process.returncode == 70
    reason = (run / "local" / "termination").read_text()
    assert reason.startswith("69 unavailable: store file://"), reason
    assert "commit of step-" in reason
