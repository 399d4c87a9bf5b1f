"""Measures a training step while 1 GiB is uploaded beside it, and the uploader's memory.

    KUBEBUILDER_ASSETS=DIR python tests/bench/upload_beside.py [--gib 1] [--uploads 3]

A real local run (the small SDXL, LoRA, one worker with one thread) trains; meanwhile the uploader
process of another run sends checkpoints of one file to versitygw, with pauses in between. Each step
counts as beside an upload or not by its time. The server is kept off the worker's core as far as
the machine has others: it stands for another machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "s3"))

import servers

from jobs import claims, layout
from jobs.access import Access
from jobs.outbox import Outbox
from jobs.stores import open_store

GIB = 1 << 30
MOST_SLOWDOWN, MOST_MIB = 1.10, 250
LOG_EVERY = 5
PAUSE_SECONDS = 8.0


def training(place: Path, steps: int) -> subprocess.Popen[bytes]:
    """Start the run whose steps are measured."""
    command = [
        sys.executable, "-m", "launcher.cli", "submit", "train", "--backend", "local",
        "--npus", "1", "--name", "measured", "--wait",
    ]  # fmt: skip
    said = {"steps": steps, "log_every": LOG_EVERY, "save_every": steps, "batch_size": 1}
    for key, value in said.items():
        command += ["--set", f"{key}={value}"]
    with (place / "training.log").open("wb") as log:
        variables = {**os.environ, "LAUNCHER_THREADS": "1"}
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, env=variables)


def rows(place: Path) -> list[dict[str, object]]:
    """Return the metrics of the measured run so far."""
    path = place / "runs" / "measured" / layout.METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def uploader(place: Path, server: servers.Server, work: Path) -> subprocess.Popen[bytes]:
    """Start the uploader process of a run of its own."""
    url = f"s3://{server.bucket()}/runs"
    secrets = {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }
    os.environ.update(secrets)
    claim = claims.take_claim(
        open_store(url, Access(endpoint=server.endpoint)), "up", cluster="", namespace="", uid="u"
    )
    ours = {
        "JOB_SPEC": "{}", "JOB_RUN": "up", "JOB_STORE": url, "JOB_UID": "u", "JOB_WORK": str(work),
        "JOB_STORE_ENDPOINT": server.endpoint,
    }  # fmt: skip
    command = [sys.executable, "-m", "jobs.sync", json.dumps(dataclasses.asdict(claim))]
    with (place / "uploader.log").open("wb") as log:
        return subprocess.Popen(command, env={**os.environ, **ours}, stdout=log, stderr=log)


def publish(outbox: Outbox, step: int, source: Path) -> Path:
    """Hand a checkpoint over; a link costs no copy that would disturb the measurement."""
    draft = outbox.draft(step)
    os.link(source, draft / "state.safetensors")
    target = outbox.root / layout.CHECKPOINTS / draft.name
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(target)
    return target


def peak_mib(pid: int) -> int:
    """Return a process's largest resident set so far in MiB (proc(5), VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmHWM")


def measure(place: Path, size: int, count: int) -> tuple[list[float], list[float], int]:
    """Return ms per step beside uploads and without, and the uploader's peak in MiB."""
    source = place / "source"
    with source.open("wb") as file:
        for _ in range(size >> 24):
            file.write(os.urandom(1 << 24))
    outbox = Outbox(place / "work")
    windows: list[tuple[float, float]] = []
    with servers.server("versitygw", place / "server") as server:
        sender = uploader(place, server, outbox.work)
        trainer = training(place, steps=100_000)
        try:
            while len(rows(place)) < 10:
                assert trainer.poll() is None, (place / "training.log").read_text()[-2000:]
                time.sleep(0.5)
            for number in range(1, count + 1):
                time.sleep(PAUSE_SECONDS)
                started = time.time()
                folder = publish(outbox, number, source)
                while folder.exists():
                    assert sender.poll() is None, (place / "uploader.log").read_text()[-2000:]
                    time.sleep(0.05)
                windows.append((started, time.time()))
            time.sleep(PAUSE_SECONDS)
            peak = peak_mib(sender.pid)
        finally:
            sender.kill()
            subprocess.run(
                [sys.executable, "-m", "launcher.cli", "cancel", "measured", "--now",
                 "--backend", "local"],
                cwd=place, check=False, capture_output=True,
            )  # fmt: skip
            trainer.wait()
            sender.wait()
    beside, alone = [], []
    for row in rows(place)[3:]:
        pace = float(str(row["ms_per_step"]))
        end = datetime.fromisoformat(str(row["time"])).timestamp()
        begin = end - LOG_EVERY * pace / 1000
        if any(start <= begin and end <= stop + 1 for start, stop in windows):
            beside.append(pace)
        elif not any(start - 1 < end and begin < stop + 1 for start, stop in windows):
            alone.append(pace)
    return beside, alone, peak


def main() -> int:
    """Print both figures; end with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gib", type=int, default=1)
    parser.add_argument("--uploads", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        beside, alone, peak = measure(Path(folder), given.gib * GIB, given.uploads)
    with_upload, without = statistics.median(beside), statistics.median(alone)
    ratio = with_upload / without
    print(
        f"step alone {without:.1f} ms ({len(alone)} rows), beside an upload {with_upload:.1f} ms "
        f"({len(beside)} rows): ratio {ratio:.3f} (<= {MOST_SLOWDOWN}); "
        f"uploader's peak {peak} MiB (<= {MOST_MIB})"
    )
    return int(ratio > MOST_SLOWDOWN or peak > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
