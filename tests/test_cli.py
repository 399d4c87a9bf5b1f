"""The verbs as a person runs them: real processes of the launcher, a stand-in as the job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from standin import PROGRAM, launch, start

from jobs import pictures, recipes
from jobs.specs import INLINE_PROMPT_BYTES
from launcher import cli, options
from launcher.backends import local, localproc, localrun
from launcher.backends.localrun import Files

LOCAL = ("--backend", "local")
TRAIN = ("submit", "train", *LOCAL)
CLUSTER = ("--image", "registry.example/jobs:1", "--store", "s3://bucket/runs")
JOB = ("submit", "train", *CLUSTER, "--dry-run")
PROMPTS = str(Path(__file__).parents[1] / "prompts" / "onepiece.txt")
SLOW = {"STANDIN_SECONDS": "0.3"}
DEFAULTS = "local: model=tiny data=tiny store=./runs (defaults; see --model, --data, --store)\n"


def refused(done, code, error, hint=""):
    """Check that a verb ended as the contract says: its code, one error line, one hint at most."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("local: ")]
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    assert hint in (lines[1] if len(lines) == 2 else "")


@pytest.fixture
def inside(place, monkeypatch, capfd):
    """Run the launcher in this process: as true for a refusal, and a second faster."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("KUBECONFIG", str(place / "no-kubeconfig"))
    monkeypatch.setattr(local, "PROGRAM", PROGRAM)  # whatever slips through trains nothing
    for name in [name for name in os.environ if name.startswith("LAUNCHER_")]:
        monkeypatch.delenv(name)

    def run(*arguments):
        code = cli.main(arguments)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


def commands():
    def walk(command, path):
        yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name))

    return list(walk(typer.main.get_command(cli.app), ()))


@pytest.mark.parametrize(
    ("path", "command"),
    commands(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_each_verb_has_help_with_an_example(path, command):
    assert command.help
    assert command.help.splitlines()[0].rstrip().endswith(".")
    if path not in (("submit",), ("ckpt",), ("cache",)):
        assert re.search(rf"^launcher {' '.join(path)}".rstrip() + " ", command.help, re.MULTILINE)
    for param in command.params:
        assert getattr(param, "help", ""), f"{path}: {param.name} has no help"


def test_each_verb_helps(inside):
    for path, command in commands():
        done = inside(*path, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert command.help.splitlines()[0].split()[0] in done.stdout
        assert "\u256d" not in done.stdout, "no frames"


def test_the_verbs_of_the_readme_exist():
    names = {" ".join(path) for path, _ in commands()}
    assert names == {
        "", "list", "status", "logs", "cancel", "fetch", "config", "submit", "submit train",
        "submit infer", "push", "doctor", "ckpt", "ckpt list", "ckpt verify", "ckpt pin",
        "ckpt prune", "report", "cache", "cache list", "cache prune",
    }  # fmt: skip


HEAVY = ("pydantic", "boto3", "kubernetes", "yaml", "rich", "click.testing", "mindspore")
COMPLETION = {"_LAUNCHER_COMPLETE": "complete_bash", "COMP_CWORD": "3"}


@pytest.mark.parametrize(
    ("arguments", "env", "out"),
    [
        (["--help"], {}, "Usage: launcher"),
        (["submit", "train", "--help"], {}, "Usage: launcher submit train"),
        (["ckpt", "prune", "--help"], {}, "Usage: launcher ckpt prune"),
        (["doctor", "--help"], {}, "Usage: launcher doctor"),
        (["--version"], {}, "launcher 0."),
        ([], {**COMPLETION, "COMP_WORDS": "launcher submit train --met"}, "--method"),
        ([], {**COMPLETION, "COMP_WORDS": "launcher submit train --method lo"}, ""),
        (
            [],
            {"_LAUNCHER_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "launcher submit t"},
            "train",
        ),
    ],
)
def test_help_and_completion_load_nothing_heavy(place, arguments, env, out):
    code = (
        "import sys\nfrom launcher.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"loaded = [name for name in {HEAVY!r} if sys.modules.get(name)]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **env}, cwd=place,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert out in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["submit", "train", "--stesp", "3"], "--stesp", "launcher submit train --help"),
        (["submit", "train", "--steps", "many"], "--steps", "launcher submit train --help"),
        (["submit", "train", "--method", "loar"], "--method", ""),
        (["stat"], "stat", "launcher --help"),
        (["status"], "RUN", "launcher status --help"),
        (["submit", "infer", *LOCAL], "--prompts: is missing", "--prompts FILE"),
        ([*TRAIN, "--set", "steps"], "--set 'steps'", ""),
        ([*TRAIN, "--name", "No Good"], "--name 'No Good'", "--name no-good"),
        ([*TRAIN, "--npus", "0"], "--npus 0", "--npus 1"),
        ([*TRAIN, "--nodes", "2"], "--nodes 2", "--nodes 1"),
        ([*JOB, "--npus", "3", "--server", "module"], "--npus 3", "--npus 4"),
        (["submit", "infer", *LOCAL, "--prompts", PROMPTS, "--lora", "A@b"], "--lora 'A@b'", "@"),
        (
            ["submit", "infer", *LOCAL, "--prompts", PROMPTS, "--only", "x"],
            "--only: 'x' is no line (17), range (40-42) or picture (17.0)",
            "17,40-42",
        ),
        (["submit", "infer", *LOCAL, "--prompts", PROMPTS, "--lora", ""], "--lora ''", "@"),
        (
            ["submit", "infer", *LOCAL, "--prompts", PROMPTS, "--set", "prompts=[]"],
            "--set prompts: prompts come from a file",
            "--prompts FILE",
        ),
        (["submit", "infer", *LOCAL, "--prompts", ""], "--prompts '': is empty", "--prompts FILE"),
        ([*TRAIN, "--name", ""], "--name '': a run needs a name", "--name run"),
        ([*TRAIN, "--store", ""], "--store '': is empty", "leave it out"),
        (["list", *LOCAL, "--store", ""], "--store '': is empty", "leave it out"),
    ],
)
def test_wrong_usage_is_one_line(inside, place, arguments, error, hint):
    done = inside(*arguments)
    refused(done, 2, error, hint)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        ([*TRAIN, "--set", "stesp=3"], 78, "--set stesp: no such key", "did you mean steps"),
        ([*TRAIN, "--resolution", "100"], 78, "resolution: ", "comes from --resolution"),
        ([*TRAIN, "--spec", "gone.yaml"], 66, "gone.yaml: no such file", ""),
        ([*TRAIN, "--config", "gone.toml"], 66, "gone.toml: no such file", "--example"),
        ([*TRAIN, "--store", "gs://bucket/x"], 78, "store 'gs://bucket/x'", "--store ./runs"),
        ([*TRAIN, "--store", "s3://"], 78, "store 's3://': names no bucket", "s3://bucket/prefix"),
        (["submit", "infer", *LOCAL, "--prompts", "gone.txt"], 66, "gone.txt: no such file", ""),
        (["submit", "infer", *LOCAL, "--prompts", "."], 78, ".: cannot be read", "one prompt"),
        ([*TRAIN, "--store", "//[x"], 78, "store '//[x' (from --store)", "--store ./runs"),
        ([*TRAIN, "--store", "file://"], 78, "store 'file://' (from --store)", "--store ./runs"),
        ([*TRAIN, "--store", "~no-such-user/x"], 78, "store '~no-such-user/x'", "--store ./runs"),
        ([*JOB, "--store", "s3://"], 78, "store 's3://': names no bucket", "s3://bucket/prefix"),
        ([*JOB, "--store", "s3:///p"], 78, "store 's3:///p': names no bucket", "s3://bucket/"),
        ([*JOB, "--store", "s3://[b/p"], 78, "store 's3://[b/p': names no", "s3://bucket/"),
        ([*JOB, "--store", "s3://a b"], 78, "store 's3://a b': names no", "s3://bucket/"),
        ([*JOB, "--store", "file://host/p"], 78, "store 'file://host/p': ", "file:///path"),
        ([*JOB, "--image", "a b"], 78, "image 'a b': is no name of an image", "tag or digest"),
        ([*JOB, "--image", "Jobs:1"], 78, "image 'Jobs:1': is no name", "tag or digest"),
        ([*TRAIN, "--data", "/no/such"], 66, "data '/no/such' (from --data): no such", "hub id"),
        ([*TRAIN, "--data", "./no"], 66, "data './no' (from --data): no such file", "hub id"),
        ([*TRAIN, "--data", "pictures"], 66, "data 'pictures' (from --data): no such", "tiny"),
        ([*TRAIN, "--data", "~no-such-user/x"], 66, "data '~no-such-user/x'", "hub id"),
        ([*TRAIN, "--model", "a/b/c"], 66, "model 'a/b/c' (from --model): no such", "hub id"),
        ([*TRAIN, "--model", "."], 78, "model '.' (from --model): no model_index.json", "pipeline"),
        ([*TRAIN, "--model", __file__], 78, "(from --model): is no .safetensors file", "pipeline"),
        ([*TRAIN, "--set", "data=./no"], 66, "data './no' (from --set): no such", "hub id"),
        ([*TRAIN, "--data", "./no", "--dry-run"], 66, "data './no'", "hub id"),
        (["status", "nobody", *LOCAL], 66, "run 'nobody': no such run", "launcher list"),
        (["logs", "../x", *LOCAL], 66, "run '../x': no such run", ""),
        (["cancel", "nobody", *LOCAL], 66, "run 'nobody': no such run", ""),
        (["fetch", "nobody", "out", *LOCAL], 66, "run 'nobody': no such run", ""),
        (["submit", "train", "--npus", "8"], 69, "kubeconfig", "--backend local"),
        (["submit", "train", "--npus", "8", "--dry-run"], 78, "image: ", "LAUNCHER_IMAGE"),
        (["list"], 69, "cluster: there is no kubeconfig at ", "--backend local"),
        (["status", "x", "-n", "team"], 69, "cluster: there is no kubeconfig", "--backend local"),
        (["cancel", "x", "--backend", "kubernetes"], 69, "cluster: there is no kubeconfig", ""),
        (["cancel", "x"], 66, "run 'x': no such run in ", "--context or KUBECONFIG"),
        (["status", "x"], 66, "run 'x': no such run in ", "--context or KUBECONFIG"),
        (["status", "No Good"], 66, "run 'No Good': no such run; that is no legal name", ""),
        ([*TRAIN, "--idempotent"], 2, "--idempotent: a name that is made up", "--name"),
        (["fetch", "x", "out"], 66, "run 'x': no such run in ", "--store"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_its_code(inside, place, arguments, code, error, hint):
    done = inside(*arguments)
    refused(done, code, error, hint)
    assert not list(place.iterdir()), "a failed submission leaves nothing behind"


def test_a_refusal_of_a_real_process(place):
    refused(launch(place, *TRAIN, "--set", "stesp=3"), 78, "--set stesp: no such key", "steps")


@pytest.mark.parametrize("verb", [TRAIN, ("list",)])
def test_a_variable_with_a_bad_store_is_one_line(inside, monkeypatch, verb):
    monkeypatch.setenv("LAUNCHER_STORE", "//[x")
    done = inside(*verb, *LOCAL)
    refused(done, 78, "store '//[x' (from LAUNCHER_STORE)", "--store ./runs")


def test_an_empty_store_in_a_file_is_the_default(inside, place):
    (place / "launcher.toml").write_text('store = ""\n')
    done = inside(*TRAIN, "--dry-run")
    assert done.stderr == DEFAULTS
    assert f"JOB_STORE: {place}/runs\n" in done.stdout


def test_a_store_that_is_a_file_is_called_one(inside, place):
    (place / "f").write_text("")
    for store in ("f", "f/below"):
        done = inside(*TRAIN, "--store", store)
        refused(done, 78, f"store {place}/{store}: {place}/f: is a file, not a folder", "--store")


def test_a_configuration_that_is_a_folder_is_refused(inside, place):
    (place / "launcher.toml").mkdir()
    refused(inside("config"), 78, "launcher.toml: cannot be read: Is a directory", "--example")


def test_paths_of_a_spec_file_are_checked_and_made_absolute(inside, place):
    (place / "s.yaml").write_text("data: pictures\nmodel: me/model\n")
    refused(inside(*TRAIN, "--spec", "s.yaml"), 66, "data 'pictures' (from s.yaml): no such file")
    (place / "pictures").mkdir()
    done = inside(*TRAIN, "--spec", "s.yaml", "--dry-run")
    spec = json.loads(yaml.safe_load(done.stdout)["environment"]["JOB_SPEC"])
    assert spec["data"] == str(place / "pictures")
    assert spec["model"] == "me/model", "a hub id"


@pytest.mark.parametrize(("minutes", "seconds"), [("", "60"), ("30", "1800"), ("5", "300")])
def test_a_folder_here_is_not_waited_for_as_long(inside, monkeypatch, minutes, seconds):
    monkeypatch.setenv("LAUNCHER_STORE_DEADLINE_MINUTES", minutes)
    environment = yaml.safe_load(inside(*TRAIN, "--dry-run").stdout)["environment"]
    assert environment["JOB_STORE_DEADLINE_SECONDS"] == seconds


def test_a_weight_out_of_range_is_blamed_on_its_flag(inside, place):
    wanted = ("submit", "infer", *CLUSTER, "--dry-run", "--prompts", PROMPTS)
    done = inside(*wanted, "--lora", "cat:99")
    refused(done, 78, "lora_weight: ", "lora_weight comes from --lora RUN:WEIGHT")
    done = inside(*wanted, "--lora", "cat@0")
    refused(done, 78, "lora_step: ", "lora_step comes from --lora RUN@STEP")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "p.txt: holds no prompt"),
        (b"a\0b", "p.txt: is not text: byte 2 of line 1"),
        (b"a\n\xff\n", "p.txt: line 2: is not UTF-8 text at byte 1"),
        (b"x" * (64 * 2**20 + 1), "p.txt: is larger than 64 MiB"),
    ],
)
def test_a_bad_prompt_file_is_configuration(inside, place, data, error):
    (place / "p.txt").write_bytes(data)
    done = inside("submit", "infer", *LOCAL, "--prompts", "p.txt")
    refused(done, 78, error, "one prompt a line")
    assert not (place / "runs").exists()


def test_bad_prompt_lines_stand_one_below_the_other(inside, place):
    (place / "p.jsonl").write_text('{"prompt": "x", "steps": 0}\n' * 22)
    done = inside("submit", "infer", *LOCAL, "--prompts", "p.jsonl")
    assert (done.returncode, done.stdout) == (78, "")
    first, *rows, hint = done.stderr.splitlines()
    assert first == "error: p.jsonl: 22 bad lines"
    told = "steps: Input should be greater than or equal to 1, not 0"
    wanted = [f"  line {number}: {told}" for number in range(1, 21)]
    assert rows == [*wanted, "  and 2 more bad lines"]
    assert hint.startswith("hint: a prompt file is ")
    assert not (place / "runs").exists()


def test_submit_prints_the_name_alone_and_says_what_it_assumed(place):
    done = launch(place, *TRAIN, "--steps", "2")
    assert done.returncode == 0
    assert re.fullmatch(r"train-lora-\d{8}-\d{6}-\w{4}\n", done.stdout)
    assert done.stderr.startswith(DEFAULTS)
    name = done.stdout.strip()
    assert f"launcher logs {name} -f" in done.stderr
    assert (place / "runs" / name).is_dir()


def test_what_is_set_is_not_called_a_default(place):
    (place / "pictures").mkdir()
    done = launch(place, *TRAIN, "--dry-run", "--data", "pictures", "--store", "other")
    assert done.stderr == "local: model=tiny (defaults; see --model)\n"
    document = yaml.safe_load(done.stdout)
    assert json.loads(document["environment"]["JOB_SPEC"])["data"] == str(place / "pictures")
    assert document["environment"]["JOB_STORE"] == str(place / "other")
    assert not (place / "other").exists()


def test_wait_follows_the_log_and_ends_as_the_run_does(place):
    good = launch(place, *TRAIN, "--steps", "3", "--name", "good", "--wait", env=SLOW)
    assert (good.returncode, good.stdout) == (0, "good\n")
    assert "step=3\nexit=0 results are committed and verified\ngood: succeeded" in good.stderr
    bad = launch(
        place, *TRAIN, "--name", "bad", "--wait", env={"STANDIN_END": "65 bad data: x.png: torn"}
    )
    assert (bad.returncode, bad.stdout) == (70, "bad\n")
    assert "error: run 'bad': failed (65): x.png: torn\n" in bad.stderr
    again = launch(place, *TRAIN, "--name", "slow", "--wait", env={"STANDIN_END": "79 stalled: x"})
    assert again.returncode == 70
    assert "hint: the same submission with --name slow goes on" in again.stderr


def test_ctrl_c_while_waiting_leaves_the_run_going(place):
    process = start(place, *TRAIN, "--name", "run", "--steps", "9", "--wait", env=SLOW)
    assert process.stdout.readline() == "run\n", "the name comes first, and at once"
    while "step=1" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run goes on: `launcher logs run -f` follows it, `launcher cancel run` ends it" in err
    assert "Traceback" not in err
    status = json.loads(launch(place, "status", "run", "--json").stdout)
    assert status["state"] == "running"
    assert "step=" in status["log"], "what it does now"
    done = launch(place, "logs", "run", "-f", "--tail", "1")
    assert done.returncode == 0
    assert done.stdout.endswith("exit=0 results are committed and verified\n")


def test_following_a_failing_run_ends_with_70(place):
    end = {"STANDIN_END": "70 diverged: the loss is nan"}
    launch(place, *TRAIN, "--name", "run", "--steps", "5", env={**SLOW, **end})
    done = launch(place, "logs", "run", "-f")
    assert done.returncode == 70
    assert done.stdout.endswith("exit=70 diverged: the loss is nan\n")
    assert "error: run 'run': failed (70): the loss is nan\n" in done.stderr


def test_status_list_logs_cancel_and_fetch_agree(place):
    launch(place, *TRAIN, "--name", "first", "--steps", "3", "--wait")
    launch(place, *TRAIN, "--name", "second", "--steps", "99", "--store", "other", env=SLOW)
    there = ("--store", "other", *LOCAL)
    while launch(place, "status", "second", *there, "--json").stdout.find('"committed": 1') < 0:
        time.sleep(0.1)
    assert "stopped (75): stopped on request" in launch(place, "cancel", "second", *there).stderr
    text = launch(place, "status", "second", *there).stdout
    assert re.search(r"^state +stopped \(75, stopped\)$", text, re.MULTILINE)
    assert re.search(r"^progress +step \d+ of 99, loss .*, 10 img/s$", text, re.MULTILINE)

    listed = launch(place, "list")
    assert "no backend is set" in listed.stderr
    assert [line.split()[:3] for line in listed.stdout.splitlines()] == [
        ["RUN", "KIND", "STATE"],
        ["first", "train", "succeeded"],
    ]
    (row,) = json.loads(launch(place, "list", "--json").stdout)
    assert row == json.loads(launch(place, "status", "first", "--json").stdout)
    assert (row["state"], row["code"], row["committed"], row["workers"]) == ("succeeded", 0, 3, 1)
    assert launch(place, "logs", "first", "--tail", "1").stdout.startswith("exit=0")

    done = launch(place, "fetch", "first", "out")
    paths = done.stdout.splitlines()
    assert "out/checkpoints/step-00000003/pytorch_lora_weights.safetensors" in paths
    assert all((place / path).is_file() for path in paths)
    assert launch(place, "fetch", "first", "out").stdout == ""
    (place / "out/result.json").write_text("mine")
    (place / "runs/first/result.json").write_text("{}")
    done = launch(place, "fetch", "first", "out")
    refused(done, 73, "out/result.json: exists and is another file", "--force")
    assert (place / "out/result.json").read_text() == "mine"
    assert launch(place, "fetch", "first", "out", "--force").stdout == "out/result.json\n"
    assert (place / "out/result.json").read_text() == "{}"


DEEP = (*LOCAL, "--store", "deep/runs")
"""Where `place` does not look for runs to end: it could not read the broken ones."""


def local_run(place, name, spec, **changes):
    """Write the files of a run that ended, without running it."""
    folder = place / "deep/runs" / name
    (folder / "local").mkdir(parents=True)
    plan = {
        "name": name, "kind": spec["kind"], "uid": name, "submitted": "2026-11-23T10:00:00Z",
        "workers": 1, "environment": {"JOB_SPEC": json.dumps(spec)},
    }  # fmt: skip
    (folder / "local/plan.json").write_text(json.dumps(plan | changes))
    (folder / "local/lock").touch()
    (folder / "local/termination").write_text("0 done\n")
    return folder


TRAINED = {"kind": "train", "steps": 4}
PAINTED = {"kind": "infer", "images": 1, "prompts": [{"line": 1}]}


@pytest.mark.parametrize(
    ("spec", "file", "text"),
    [
        (TRAINED, "spec.json", "garbage"),
        (TRAINED, "spec.json", "[1]"),
        (TRAINED, "spec.json", '{"attempts": "x"}'),
        (TRAINED, "spec.json", "[" * 100_000),
        (TRAINED, "metrics.jsonl", '{"step": "x", "ms_per_step": 1.0}\n'),
        (TRAINED, "metrics.jsonl", '{"step": 1, "loss": "x"}\n'),
        (TRAINED, "metrics.jsonl", '{"step": 1, "img_s": []}\n'),
        (TRAINED, "metrics.jsonl", '{"step": 1, "ms_per_step": true}\n'),
        (TRAINED, "local/plan.json", "garbage"),
        (TRAINED | {"steps": "x"}, "local/plan.json", None),
        (PAINTED | {"images": "x"}, "local/plan.json", None),
        (PAINTED | {"prompts": 3}, "local/plan.json", None),
        (PAINTED | {"prompts": {"key": "../x"}}, "local/plan.json", None),
    ],
)
def test_a_broken_record_is_named_and_hides_no_other_run(inside, place, spec, file, text):
    local_run(place, "good", TRAINED)
    folder = local_run(place, "bad", spec)
    if text is not None:
        (folder / file).write_text(text)
    refused(inside("status", "bad", *DEEP), 78, f"{folder / file}: ")
    done = inside("list", *DEEP)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["RUN", "good"]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"skipped: {folder / file}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {}},
        {"environment": {"JOB_SPEC": "{not json"}},
        {"environment": {"JOB_SPEC": "[]"}},
        {"environment": {"JOB_SPEC": 3}},
        {"environment": []},
        {"submitted": 3},
        {"workers": "x"},
    ],
)
def test_a_broken_plan_is_named(inside, place, changes):
    folder = local_run(place, "bad", TRAINED, **changes)
    for verb in (("status", "bad"), ("cancel", "bad"), ("fetch", "bad", "out")):
        refused(inside(*verb, *DEEP), 78, f"{folder}/local/plan.json: is not a record")
    assert "skipped: " in inside("list", *DEEP).stderr


def test_a_record_that_is_a_folder_is_named(inside, place):
    folder = local_run(place, "bad", TRAINED)
    (folder / "spec.json").mkdir()
    refused(inside("status", "bad", *DEEP), 78, f"{folder}/spec.json: cannot be read")


def test_a_pace_that_is_not_finite_promises_nothing(inside, place):
    folder = local_run(place, "run", TRAINED)
    (folder / "metrics.jsonl").write_text('{"step": 1, "ms_per_step": NaN, "loss": NaN}\n')
    assert "step 1 of 4, loss nan" in inside("status", "run", *DEEP).stdout


def test_a_damaged_commit_is_one_line(inside, place):
    folder = local_run(place, "run", TRAINED) / "checkpoints/step-00000004"
    folder.mkdir(parents=True)
    (folder / "COMMITTED").write_bytes(b"\xff")
    (folder / "MANIFEST.json").write_text("{}")
    refused(inside("fetch", "run", "out", *DEEP), 66, "step-00000004")


def test_hints_carry_the_flags_that_find_the_run(place):
    there = ("--store", "a b")
    launch(place, *TRAIN, *there, "--name", "run", "--steps", "99", env=SLOW)
    flags = "--backend local --store 'a b'"
    done = launch(place, *TRAIN, *there, "--name", "run", "--steps", "99")
    refused(done, 73, "is running", f"launcher logs run -f {flags} follows it")
    refused(done, 73, "is running", f"launcher cancel run {flags} ends it")


def test_cancel_kills_what_a_dead_supervisor_left(place):
    launch(place, *TRAIN, "--name", "run", "--steps", "99", env={**SLOW, "STANDIN_CHILD": "1"})
    files = Files(place / "runs/run")
    while not files.console.is_file() or "step=1" not in files.console.read_text():
        time.sleep(0.05)
    os.kill(int(files.pid.read_text()), signal.SIGKILL)
    while localrun.alive(files):
        time.sleep(0.05)
    uid = localrun.read(files).uid
    assert localproc.members(uid)
    done = launch(place, "cancel", "run")
    assert (done.returncode, done.stdout) == (0, "")
    assert "run: killed what its supervisor left behind\nrun: interrupted" in done.stderr
    assert not localproc.members(uid)
    assert "killed" not in launch(place, "cancel", "run").stderr


def test_an_empty_list_is_an_empty_list(place):
    done = launch(place, "list", *LOCAL, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert launch(place, "list", *LOCAL).stdout == ""


def test_the_same_submission_resumes(place):
    end = {"STANDIN_END": "75 stopped: on request"}
    wanted = (*TRAIN, "--name", "run", "--steps", "2", "--wait")
    assert launch(place, *wanted, env=end).returncode == 70
    done = launch(place, *wanted)
    assert done.returncode == 0
    assert "local: resuming run from its last commit\n" in done.stderr
    refused(launch(place, *wanted), 73, "run 'run': has succeeded", "--name")


def test_inference_pins_the_lora_and_paints(place):
    (place / "p.txt").write_text("a cat\n# no\na dog\n")
    paint = ("submit", "infer", *LOCAL, "--prompts", "p.txt")
    refused(launch(place, *paint, "--lora", "cats"), 66, "--lora 'cats': no such run", "list")
    launch(place, *TRAIN, "--name", "cats", "--steps", "3", "--wait")
    document = yaml.safe_load(launch(place, *paint, "--lora", "cats:0.5", "--dry-run").stdout)
    spec = json.loads(document["environment"]["JOB_SPEC"])
    assert (spec["lora"], spec["lora_step"], spec["lora_weight"]) == ("cats", 3, 0.5)
    refused(launch(place, *paint, "--lora", "cats@9"), 66, "--lora cats@9", "there are 1, 2, 3")
    done = launch(place, *paint, "--lora", "cats@2", "--images", "2", "--name", "i", "--wait")
    assert done.returncode == 0
    row = json.loads(launch(place, "status", "i", "--json").stdout)
    assert (row["pictures"], row["asked"]) == (4, 4)
    assert launch(place, "fetch", "i", "out", "--include", "images/*").stdout.count(".png") == 4
    refused(launch(place, *paint, "--lora", "i"), 78, "--lora 'i': is a run of infer")


def picture(path):
    """Write a PNG as an inference run paints it; its model is a folder made for other pictures."""
    model = path.parent / "model"
    for part, config in {
        "unet": {"sample_size": 64},
        "vae": {"block_out_channels": [1] * 4},
    }.items():
        (model / part).mkdir(parents=True)
        (model / part / "config.json").write_text(json.dumps(config))
    (model / "model_index.json").write_text("{}")
    row = {
        "line": 17, "image": 2, "slot": 1, "batch_size": 4, "prompt": "a cat", "negative": "blur",
        "seed": 5, "scheduler": "LMS", "steps": 20, "guidance": 5.0, "guidance_rescale": 0.7,
        "width": 128, "height": 64, "precision": "fp16", "model": str(model),
        "model_revision": "main",
    }  # fmt: skip
    pixels = np.zeros((64, 128, 3), np.uint8)
    path.write_bytes(pictures.to_png(pixels, recipes.texts(row)))


def test_a_picture_is_asked_for_again_with_all_that_decided_it(inside, place):
    picture(place / "p.png")
    like = ("submit", "infer", *LOCAL, "--like", "p.png", "--dry-run")

    def asked(*flags):
        done = inside(*like, *flags)
        assert done.returncode == 0, done.stderr
        return json.loads(yaml.safe_load(done.stdout)["environment"]["JOB_SPEC"])

    spec = asked()
    assert spec["prompts"] == [{"line": 17, "prompt": "a cat", "images": 3}]
    wanted = {
        "only": "17.2", "first_slot": 3, "batch_size": 4, "negative": "blur", "seed": 5,
        "scheduler": "LMS", "steps": 20, "guidance": 5.0, "guidance_rescale": 0.7, "width": 128,
        "height": 64, "precision": "fp16", "model": str(place / "model"),
    }  # fmt: skip
    assert {key: spec[key] for key in wanted} == wanted, "not what fits its model"
    changed = asked("--steps", "9", "--set", "seed=6")
    assert changed == {**spec, "steps": 9, "seed": 6}
    (place / "p.txt").write_text("a dog\n")
    refused(inside(*like, "--prompts", "p.txt"), 2, "--like: has a prompt of its own", "--prompts")
    refused(inside(*like[:-2], "gone.png"), 66, "gone.png: no such file", "--like wants a PNG")
    refused(inside(*like[:-2], "p.txt"), 78, "p.txt: is no picture that can be read", "--like")
    Image.new("RGB", (8, 8)).save(place / "bare.png")
    refused(inside(*like[:-2], "bare.png"), 78, "bare.png: carries no recipe", "--like wants a PNG")
    assert not (place / "runs").exists()


def test_prompts_from_standard_input(place):
    process = start(
        place, "submit", "infer", *LOCAL, "--prompts", "-", "--dry-run", stdin=subprocess.PIPE
    )
    out, err = process.communicate("a cat\n", timeout=60)
    assert process.returncode == 0, err
    spec = json.loads(yaml.safe_load(out)["environment"]["JOB_SPEC"])
    assert spec["prompts"] == [{"line": 1, "prompt": "a cat"}]


def test_long_prompt_files_go_through_the_store(place):
    (place / "p.txt").write_text(
        "".join(f"picture {n} of $(HOME)\n" for n in range(INLINE_PROMPT_BYTES // 40))
    )
    wanted = ("submit", "infer", *LOCAL, "--prompts", "p.txt", "--name", "long")
    dry = launch(place, *wanted, "--dry-run")
    key = json.loads(yaml.safe_load(dry.stdout)["environment"]["JOB_SPEC"])["prompts"]["key"]
    assert f"not there yet: {place}/runs/{key}" in dry.stderr
    assert not (place / "runs").exists()
    (place / "runs/long").mkdir(parents=True)  # the name is taken: the prompts are taken back
    refused(launch(place, *wanted), 73, "run 'long'")
    assert not (place / "runs/cache").exists()
    (place / "runs/long").rmdir()
    assert launch(place, *wanted, "--steps", "1").returncode == 0
    rows = (place / "runs" / key).read_text().splitlines()
    assert json.loads(rows[4]) == {"line": 5, "prompt": "picture 4 of $(HOME)"}
    assert json.loads(launch(place, "status", "long", "--json").stdout)["asked"] == len(rows)
    assert "not there yet" not in launch(place, *wanted, "--dry-run").stderr


def test_dry_run_prints_the_job_a_cluster_would_get(place):
    wanted = ("submit", "train", "--npus", "8", *CLUSTER, "--dry-run", "--name", "run")
    done = launch(place, *wanted)
    assert done.returncode == 0
    graphs, warning = done.stderr.splitlines()
    assert graphs.startswith("graphs to compile: 1 (step); ")
    assert warning.startswith("warning: store_secret: is not set")
    env = {"LAUNCHER_STORE_SECRET": "keys"}
    assert launch(place, *wanted, env=env).stderr == f"{graphs}\n"
    job = yaml.safe_load(done.stdout)
    assert (job["kind"], job["metadata"]["name"]) == ("Job", "run")
    assert launch(place, *wanted).stdout == done.stdout, "deterministic bytes"
    assert json.loads(launch(place, *wanted, "-o", "json").stdout) == job


def test_config_tells_value_and_origin(place):
    (place / "launcher.toml").write_text('image = "registry.example/jobs:1"\nretries = 5\n')
    done = launch(
        place,
        "config",
        "--json",
        "--method",
        "lora-te",
        "-n",
        "team",
        env={"LAUNCHER_RETRIES": "7"},
    )
    found = json.loads(done.stdout)
    assert found["target"]["image"] == {
        "value": "registry.example/jobs:1",
        "from": str(place / "launcher.toml"),
    }
    assert found["target"]["retries"] == {"value": 7, "from": "LAUNCHER_RETRIES"}
    assert found["target"]["namespace"] == {"value": "team", "from": "--namespace"}
    assert found["target"]["server"]["from"] == "default"
    assert found["spec"]["steps"] == {"value": 8500, "from": "method lora-te"}
    text = launch(place, "config").stdout
    assert re.search(r"^target\.retries +5 +/.*/launcher\.toml$", text, re.MULTILINE)


def test_the_example_configuration_loads(place):
    done = launch(place, "config", "--example")
    (place / "launcher.toml").write_text(done.stdout)
    found = json.loads(launch(place, "config", "--json").stdout)["target"]
    assert {row["from"] for row in found.values()} == {str(place / "launcher.toml")}


def test_a_closed_pipe_is_quiet(place):
    process = start(place, "config", "--example")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=30) == 141
    assert err == ""


def test_verbose_tells_what_lies_behind(inside):
    done = inside("-v", "submit", "train", *LOCAL, "--spec", "gone.yaml")
    assert "cause: FileNotFoundError: " in done.stderr


def test_the_shared_flags_are_the_same_on_both_kinds():
    by_path = dict(commands())
    train, infer = ({p.name for p in by_path["submit", kind].params} for kind in ("train", "infer"))
    shared = {"npus", "nodes", "name", "dry_run", "form", "wait", "spec", "set_", *options.TARGET}
    shared |= {"max_duration", "ttl"}
    assert shared <= train & infer
