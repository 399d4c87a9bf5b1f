"""Measures a training run against mindone's script for the same method, in turns with it.

    python tests/bench/peers_training.py --scripts mindone/examples/diffusers/text_to_image
        [--method lora vanilla] [--batch 1 4] [--rounds 3] [--steps 100] [--core 0]

`--scripts` is that folder of a checkout of mindone 0.3.0. Nothing in the scripts is changed: they
run in a process that sets MindSpore's device to the CPU and notes when their progress bar moves.
Both sides run as a user starts them, data and records included, with the small SDXL and the same
64 drawings at 128 pixels in fp32; all processes of a side are bound to one core.

A run's speed is the median over stretches of ten steps, those of the first `--skip` steps left
out, and a side's the median of its rounds. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.specs import LORA_TARGETS

BARS = {"lora": 1.5, "vanilla": 1.1}
SCRIPTS = {
    "lora": "train_text_to_image_lora_sdxl.py",
    "vanilla": "train_text_to_image_sdxl.py",
}
STRETCH = 10
"""Steps that are timed together."""


def play(script: Path, stamps: Path, steps: int, arguments: Sequence[str]) -> None:
    """Run a script of mindone's on the CPU; write the seconds at which each step ended.

    It is left after `steps` steps: mindone 0.3.0's LoRA script reads its table of learning rates
    one place too far after the last step it was asked for, and ends with an error.
    """
    import mindspore as ms
    from tqdm import auto

    if hasattr(ms, "set_device"):
        ms.set_device("CPU")
    else:
        ms.set_context(device_target="CPU")
    seen: list[float] = []
    move = auto.tqdm.update

    def update(bar: Any, count: float = 1) -> Any:
        if bar.desc.startswith("Steps"):
            seen.append(time.monotonic())
            if len(seen) == steps:
                raise SystemExit
        return move(bar, count)

    auto.tqdm.update = update
    sys.argv = [str(script), *arguments]
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    stamps.write_text(json.dumps(seen))


def run(command: Sequence[str], place: Path, core: int | None, log: Path) -> None:
    """Run a command to its end in `place`, all its processes on one core, if one is given.

    Raises:
        RuntimeError: it failed; with the end of what it said.

    """
    variables = {
        **os.environ, "LAUNCHER_THREADS": "1", "OMP_NUM_THREADS": "1", "GLOG_v": "3",
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub"),
    }  # fmt: skip
    bound = [] if core is None else ["taskset", "-c", str(core)]
    with log.open("w") as said:
        ended = subprocess.run(
            [*bound, *command], cwd=place, env=variables, check=False, stdout=said,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.returncode}\n{log.read_text()[-2000:]}")


def theirs(
    script: Path, place: Path, name: str, batch: int, steps: int, skip: int, core: int
) -> float:
    """Return the pictures a second of mindone's script."""
    stamps = place / f"{name}.json"
    arguments = [
        "--pretrained_model_name_or_path", str(place / "model"),
        "--train_data_dir", str(place / "pictures"), "--output_dir", str(place / name),
        "--resolution", "128", "--center_crop", "--train_batch_size", str(batch),
        "--max_train_steps", str(steps + 1), "--checkpointing_steps", str(10**6),
        "--learning_rate", "1e-4", "--lr_warmup_steps", "0", "--seed", "0", "--report_to", "none",
    ]  # fmt: skip
    played = [sys.executable, str(Path(__file__).resolve()), "--play", str(script), str(stamps)]
    played.append(str(steps))
    run([*played, *arguments], place, core, place / f"{name}.log")
    ends = json.loads(stamps.read_text())[skip - 1 :: STRETCH]
    return batch * STRETCH / statistics.median(b - a for a, b in itertools.pairwise(ends))


def ours(
    method: str, place: Path, name: str, batch: int, steps: int, skip: int, core: int | None,
    workers: int = 1,
) -> float:  # fmt: skip
    """Return the pictures a second of our run, over all workers; `batch` is that of one."""
    said = {
        "model": "tiny", "data": str(place / "pictures"), "resolution": 128, "precision": "fp32",
        "batch_size": batch, "steps": steps, "save_every": steps, "log_every": STRETCH,
        "learning_rate": 1e-4, "validation_prompts": "[]", "caption_dropout": 0, "noise_offset": 0,
        "lr_schedule": "constant", "lora_rank": 4, "lora_alpha": 4,
        "lora_targets": json.dumps(LORA_TARGETS),
    }  # fmt: skip
    values = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
    command = [
        sys.executable, "-m", "launcher.cli", "submit", "train", "--backend", "local", "--npus",
        str(workers), "--method", method, "--name", name, "--wait", *values,
    ]  # fmt: skip
    run(command, place, core, place / f"{name}.log")
    rows = [json.loads(row) for row in (place / "runs" / name / "metrics.jsonl").open()]
    # The last row's time has the last checkpoint in it, which theirs has after the loop.
    timed = [row for row in rows if skip < row["step"] < steps and row["step"] % STRETCH == 0]
    seconds = [sum(row[f"{phase}_s"] for phase in ("data", "step")) for row in timed]
    return workers * batch * STRETCH / statistics.median(seconds)


def prepare(place: Path) -> None:
    """Write the model and the drawings that both sides are given."""
    from jobs.tiny import MODEL, folders

    (place / "model").symlink_to(MODEL, target_is_directory=True)
    folders.write(place / "pictures", folders.flat(0, range(64)))


def measure(given: argparse.Namespace, place: Path, method: str, batch: int) -> bool:
    """Print the speed of both sides; return whether the bar is held."""
    script = (given.scripts / SCRIPTS[method]).resolve()
    span = (batch, given.steps, given.skip, given.core)
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(given.rounds):
        name = f"{method}-{batch}-{turn}"
        speeds["theirs"].append(theirs(script, place, f"peer-{name}", *span))
        speeds["ours"].append(ours(method, place, name, *span))
    ratio = statistics.median(speeds["ours"]) / statistics.median(speeds["theirs"])
    told = ", ".join(
        f"{side} {statistics.median(found):.2f} img/s ({min(found):.2f}-{max(found):.2f})"
        for side, found in speeds.items()
    )
    print(f"{method}, batch {batch}: {told}: ratio {ratio:.2f} (>= {BARS[method]})", flush=True)
    return ratio >= BARS[method]


def main() -> int:
    """Print a line for each method and batch."""
    if sys.argv[1:2] == ["--play"]:
        play(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scripts", type=Path, required=True)
    parser.add_argument("--method", nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip", type=int, default=20)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if given.skip < 1 or given.skip % STRETCH or given.steps < given.skip + 3 * STRETCH:
        parser.error(f"--skip: tens of steps, and --steps at least {3 * STRETCH} more")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        kept = [
            measure(given, place, method, batch) for method in given.method for batch in given.batch
        ]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
