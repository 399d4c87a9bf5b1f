"""Measures the trainer against what it cannot do without: floors, in turns with them.

    python tests/bench/train_step.py [step] [compile] [checkpoint] [--method lora|vanilla]

step        a training step, data and records included, against loops with nothing but a
            compiled graph of the same model in them: our own graph with the same arguments each
            time, MindSpore's own parts that do the same (TrainOneStepCell, clip_by_global_norm,
            AdamWeightDecay), and TrainOneStepCell that does not clip, for the record
compile     the first step of a run that finds its graphs in the store, against one that does not
checkpoint  how long the loop waits for a checkpoint, against cp and fsync of the same bytes

One worker with one thread on both sides. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.environment import Environment, Worker
from jobs.specs import TrainSpec, to_json

MOST_STEP, LEAST_COMPILE, MOST_STALL = 1.05, 5.0, 1.2
WORKER = Worker(0, 1)


def environment(place: Path, spec: TrainSpec) -> Environment:
    """Return what a local run with one thread would get."""
    return Environment(
        spec=to_json(spec), run="bench", store=str(place / "store"), uid="u", work=place / "work",
        cache=place / "cache", device="CPU", threads=1,
    )  # fmt: skip


def tiny(method: str) -> TrainSpec:
    """Return the spec of the small SDXL's run without what is not a step."""
    return TrainSpec.model_validate(
        {"method": method, "model": "tiny", "data": "tiny", "resolution": 128, "precision": "fp32",
         "steps": 10_000, "save_every": 10_000, "log_every": 10_000}
    )  # fmt: skip


def in_turns(loops: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Return each loop's ms a step: the median of the rounds, each `count` steps of each loop."""
    found: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, once in loops.items():
            began = time.perf_counter()
            for _ in range(count):
                once()
            found[name].append(1000 * (time.perf_counter() - began) / count)
    return {name: statistics.median(values) for name, values in found.items()}


def bare_cell(folder: Path, spec: TrainSpec, *, clip: bool) -> Any:
    """Return MindSpore's own training cell for the same loss and the same trained weights."""
    import mindspore as ms
    from mindspore import nn, ops

    from jobs import methods

    class Clipped(nn.TrainOneStepCell):  # type: ignore[misc]
        def construct(self, *inputs: Any) -> Any:
            loss = self.network(*inputs)
            grads = self.grad(self.network, self.weights)(*inputs, self.sens_value)
            grads = ops.clip_by_global_norm(grads, spec.max_grad_norm)
            return ops.depend(loss, self.optimizer(grads))

    step, _ = methods.build(folder, ms.float32, spec, WORKER)
    network = step.whole.loss
    optimiser = nn.AdamWeightDecay(
        list(step.whole.weights), learning_rate=1e-4, weight_decay=spec.weight_decay
    )
    if not clip:
        return nn.TrainOneStepCell(network, optimiser)
    cell = Clipped(network, optimiser)
    cell.sens_value = ms.Tensor(1.0, ms.float32)
    return cell


def measure_step(place: Path, method: str, count: int, rounds: int) -> bool:
    """Print the three times; return whether the bar is held."""
    import mindspore as ms

    from jobs import data, latents, methods, model, train
    from jobs.feed import Feed
    from jobs.journal import Journal
    from jobs.outbox import Outbox

    spec = tiny(method)
    env = environment(place, spec)
    folder = model.locate("tiny", "", env)
    encoded = latents.encode(data.load(spec, env), folder, ms.float32, spec, env, WORKER)
    feed, journal = Feed(encoded, spec, WORKER, folder), Journal(env, spec, WORKER)
    step, key = methods.build(folder, ms.float32, spec, WORKER)
    this = train.Run(spec, WORKER, Outbox(env.work), folder, step, key, feed, journal, None)
    fixed = feed.inputs(0)
    scalars = train.scalars(spec, 0)
    clips, bare = (bare_cell(folder, spec, clip=clip) for clip in (True, False))
    done = iter(range(10**9))

    def ours() -> None:
        number = next(done)
        outcome = train.once(this, number)
        train.check_finite(spec, number + 1, outcome)
        this.outbox.beat(0)

    loops: dict[str, Callable[[], object]] = {
        "ours": ours,
        "our graph alone": lambda: step([fixed], scalars),
        "MindSpore's parts": lambda: float(clips(*fixed).asnumpy()),
        "without clipping": lambda: float(bare(*fixed).asnumpy()),
    }
    in_turns(loops, 3, 1)  # compiles
    found = in_turns(loops, count, rounds)
    floor = min(found["our graph alone"], found["MindSpore's parts"])
    ratio = found["ours"] / floor
    told = ", ".join(f"{name} {value:.2f} ms" for name, value in found.items())
    print(f"step, {method}: {told}: ratio {ratio:.3f} (<= {MOST_STEP})", flush=True)
    return ratio <= MOST_STEP


def measure_compile(place: Path, method: str) -> bool:
    """Print compile and first step of a cold and a warm run; return whether the bar is held."""
    seconds = []
    for name in ("cold", "warm"):
        command = [
            sys.executable, "-m", "launcher.cli", "submit", "train", "--backend", "local",
            "--npus", "1", "--method", method, "--name", name, "--wait", "--steps", "2",
            "--set", "validation_prompts=[]",
        ]  # fmt: skip
        variables = {**os.environ, "LAUNCHER_THREADS": "1"}
        subprocess.run(command, cwd=place, env=variables, check=True, capture_output=True)
        result = json.loads((place / "runs" / name / "result.json").read_text())
        seconds.append(float(result["compile_s"]))
    ratio = seconds[0] / seconds[1]
    print(
        f"compile and first step, {method}: cold {seconds[0]:.1f} s, warm {seconds[1]:.1f} s: "
        f"ratio {ratio:.1f} (>= {LEAST_COMPILE})",
        flush=True,
    )
    return ratio >= LEAST_COMPILE


def measure_checkpoint(place: Path, megabytes: int, rounds: int) -> bool:
    """Print the stall and the copy of the same bytes; return whether the bar is held."""
    from mindspore import Parameter, Tensor, nn

    from jobs import checkpoints
    from jobs.outbox import Outbox
    from jobs.step import TrainStep
    from jobs.update import Options

    spec = tiny("vanilla")
    outbox = Outbox(environment(place, spec).work)
    rng = np.random.default_rng(0)
    rows = megabytes // 3 // 4  # weights and two moments; 4 MiB a matrix
    trained = {
        f"unet.{n}": Parameter(Tensor(rng.standard_normal((1024, 1024), np.float32)), name=f"p{n}")
        for n in range(rows)
    }
    options = Options(workers=1, weight_decay=0.0, max_grad_norm=1.0, scaled=False)
    step = TrainStep(nn.Cell(), trained, options)
    stalls, copies = [], []
    for number in range(1, rounds + 2):
        os.sync()
        began = time.perf_counter()
        draft = outbox.draft(number)
        checkpoints.save(draft, spec, step, number)
        outbox.publish(draft)
        stalls.append(time.perf_counter() - began)
        (folder,) = (outbox.root / "checkpoints").iterdir()
        size = sum(path.stat().st_size for path in folder.iterdir())
        os.sync()
        began = time.perf_counter()
        subprocess.run(["cp", "-r", str(folder), str(place / "copy")], check=True)
        subprocess.run(["sync", *map(str, (place / "copy").iterdir())], check=True)
        copies.append(time.perf_counter() - began)
        shutil.rmtree(place / "copy")
        shutil.rmtree(folder)
    stall, copy = statistics.median(stalls[1:]), statistics.median(copies[1:])
    print(
        f"checkpoint of {size / 2**20:.0f} MiB: the loop waits {stall:.2f} s, cp and fsync "
        f"{copy:.2f} s: ratio {stall / copy:.2f} (<= {MOST_STALL})",
        flush=True,
    )
    return stall / copy <= MOST_STALL


def main() -> int:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["step", "compile", "checkpoint"])
    parser.add_argument("--method", default="lora", choices=["lora", "vanilla"])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=384)
    given = parser.parse_args()
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if "compile" in given.what:
            kept.append(measure_compile(place, given.method))
        if {"step", "checkpoint"} & {*given.what}:
            from jobs import compat

            compat.start(environment(place, tiny(given.method)), group=True)
        if "step" in given.what:
            kept.append(measure_step(place, given.method, given.count, given.rounds))
        if "checkpoint" in given.what:
            kept.append(measure_checkpoint(place, given.mib, given.rounds))
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
