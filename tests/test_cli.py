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

import pytest
import typer
import yaml
from standin import launch, start

from jobs.specs import INLINE_PROMPT_BYTES
from launcher import cli, options

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
    if path != ("submit",):
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
        "submit infer",
    }  # fmt: skip


HEAVY = ("pydantic", "boto3", "kubernetes", "yaml", "rich", "click.testing", "mindspore")
COMPLETION = {"_LAUNCHER_COMPLETE": "complete_bash", "COMP_CWORD": "3"}


@pytest.mark.parametrize(
    ("arguments", "env", "out"),
    [
        (["--help"], {}, "Usage: launcher"),
        (["submit", "train", "--help"], {}, "Usage: launcher submit train"),
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
        ([*TRAIN, "--store", "s3://bucket/x"], 78, "store 's3://bucket/x'", "--store ./runs"),
        (["submit", "infer", *LOCAL, "--prompts", "gone.txt"], 66, "gone.txt: no such file", ""),
        (["submit", "infer", *LOCAL, "--prompts", "."], 78, ".: cannot be read", "one prompt"),
        (["status", "nobody", *LOCAL], 66, "run 'nobody': no such run", "launcher list"),
        (["logs", "../x", *LOCAL], 66, "run '../x': no such run", ""),
        (["cancel", "nobody", *LOCAL], 66, "run 'nobody': no such run", ""),
        (["fetch", "nobody", "out", *LOCAL], 66, "run 'nobody': no such run", ""),
        (["submit", "train", "--npus", "8"], 69, "kubeconfig", "--backend local"),
        (["submit", "train", "--npus", "8", "--dry-run"], 78, "image: ", "LAUNCHER_IMAGE"),
        (["list"], 78, "list", "kubectl get jobs -l app.kubernetes.io/managed-by=launcher"),
        (["status", "x", "-n", "team"], 78, "run 'x'", "kubectl describe job/x -n team"),
        (["logs", "x", "--context", "c"], 78, "run 'x'", "kubectl logs -f job/x --context c"),
        (["cancel", "x"], 78, "run 'x'", "kubectl delete job/x"),
        (["fetch", "x", "out"], 78, "run 'x'", "--store"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_its_code(inside, place, arguments, code, error, hint):
    done = inside(*arguments)
    refused(done, code, error, hint)
    assert not list(place.iterdir()), "a failed submission leaves nothing behind"


def test_a_refusal_of_a_real_process(place):
    refused(launch(place, *TRAIN, "--set", "stesp=3"), 78, "--set stesp: no such key", "steps")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "p.txt: holds no prompt"),
        (b"a\0b", "p.txt: is not text: line 1"),
        (b"a\n\xff\n", "p.txt: is not UTF-8 text: line 2, byte 1"),
        (b"x" * (16 * 2**20 + 1), "p.txt: is larger than 16 MiB"),
    ],
)
def test_a_bad_prompt_file_is_configuration(inside, place, data, error):
    (place / "p.txt").write_bytes(data)
    done = inside("submit", "infer", *LOCAL, "--prompts", "p.txt")
    refused(done, 78, error, "one prompt a line")
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
    assert (done.returncode, done.stderr) == (0, "")
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
    assert shared <= train & infer
