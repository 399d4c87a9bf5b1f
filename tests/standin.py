"""A small program in the supervisor's place: it reads the same environment and obeys SIGTERM.

Run as `python standin.py`, the way the local backend runs jobs.runtime. `python standin.py launcher
ARGUMENTS` is the launcher itself with this program in jobs.runtime's place.

    STANDIN_SECONDS   pause per step           STANDIN_END   `<code> <reason>` to end with
    STANDIN_CHILD     start a child in a session of its own, as msrun does with workers
    STANDIN_HOLD      file that is waited for before the end, which may hold another STANDIN_END

For tests: `launch` runs that launcher.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = (sys.executable, __file__)


def launch(place: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run the launcher in `place` and wait for it."""
    process = start(place, *arguments, **options)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start(place: Path, *arguments: str, env=None, before=(), **options) -> subprocess.Popen[str]:
    """Start the launcher in `place`, free of this machine's own configuration."""
    kept = {key: os.environ[key] for key in os.environ if not key.startswith(("LAUNCHER_", "JOB_"))}
    clean = {
        "HOME": str(place),
        "XDG_CACHE_HOME": str(place / ".cache"),
        "KUBECONFIG": str(place / "no-kubeconfig"),
    }
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(
        [*before, *PROGRAM, "launcher", *arguments],
        cwd=place,
        env={**kept, **clean, **(env or {})},
        stderr=subprocess.PIPE,
        # A shell starts background commands with SIGINT ignored, and the tests with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def launcher() -> int:
    from launcher.backends import local
    from launcher.cli import main

    local.PROGRAM = PROGRAM
    return main(sys.argv[2:])


def supervisor() -> int:
    from jobs import claims, commits, layout
    from jobs.stores import open_store

    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    run, store = os.environ["JOB_RUN"], open_store(os.environ["JOB_STORE"])
    spec = json.loads(os.environ["JOB_SPEC"])
    claim = claims.take_claim(
        store, run, cluster="", namespace=os.environ["JOB_NAMESPACE"], uid=os.environ["JOB_UID"]
    )
    record = {"spec": spec, "attempts": claim.epoch}
    store.write(layout.key(run, layout.SPEC), json.dumps(record).encode())
    names = ("JOB_", "TERMINATION_LOG", "STANDIN_")
    seen = {key: value for key, value in os.environ.items() if key.startswith(names)}
    Path("environment.json").write_text(json.dumps(seen))
    if os.environ.get("STANDIN_CHILD"):
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    begin = max(commits.committed_steps(store, run), default=0)
    print(f"attempt={claim.epoch} restored={begin}", flush=True)
    metrics = []
    for step in range(begin + 1, spec["steps"] + 1):
        if stop:
            return end(f"75 stopped: stopped on request: step {step - 1} is committed")
        time.sleep(float(os.environ.get("STANDIN_SECONDS", "0")))
        row = {"step": step, "steps": spec["steps"], "loss": 1 / step, "ms_per_step": 100.0}
        metrics.append(json.dumps({**row, "img_s": 10.0}))
        store.write(layout.key(run, layout.METRICS), "\n".join(metrics).encode())
        if spec["kind"] == "train":
            folder = Path("draft")
            folder.mkdir(exist_ok=True)
            (folder / layout.LORA_FILE).write_bytes(b"weights of step %d" % step)
            prefix = layout.key(run, layout.CHECKPOINTS, layout.step_name(step))
            commits.commit(store, prefix, folder)
        print(f"step={step}", flush=True)
    if spec["kind"] == "infer":
        paint(store, run, spec)
    hold = os.environ.get("STANDIN_HOLD")
    while hold and not Path(hold).exists():
        if stop:
            return end(f"75 stopped: stopped on request: step {spec['steps']} is committed")
        time.sleep(0.02)
    told = Path(hold).read_text() if hold else ""
    return end(told or os.environ.get("STANDIN_END", "0 results are committed and verified"))


def paint(store, run, spec) -> None:
    from jobs import layout

    rows = []
    for row in spec["prompts"]:
        for image in range(spec["images"]):
            name, data = layout.picture_name(row["line"], image), row["prompt"].encode()
            store.write(layout.key(run, layout.IMAGES, name), data)
            file = f"{layout.IMAGES}/{name}"
            rows.append({"file": file, "sha256": hashlib.sha256(data).hexdigest(), **row})
    lines = "\n".join(json.dumps(row) for row in rows)
    store.write(layout.key(run, layout.PICTURES), lines.encode())


def end(text: str) -> int:
    print(f"exit={text}", flush=True)
    Path(os.environ["TERMINATION_LOG"]).write_text(text + "\n")
    return int(text.split()[0])


if __name__ == "__main__":
    sys.exit(launcher() if sys.argv[1:2] == ["launcher"] else supervisor())
