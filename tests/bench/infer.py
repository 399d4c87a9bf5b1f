"""Measures painting against the reference's loop, in parts.

    python tests/bench/infer.py steady    pictures a second while painting
    python tests/bench/infer.py job       a whole job of 200 prompts, 30 steps, warm compile cache
    python tests/bench/infer.py workers   two workers of one thread each against one
    python tests/bench/infer.py pynative  against the loop in MindSpore's default mode
    python tests/bench/infer.py schedulers  seconds a denoising step of a batch, by scheduler

The reference's loop calls mindone's StableDiffusionXLPipeline with one prompt at a time; ours
paints batches. All paint with the weights of the tiny model. `steady` takes turns in one process,
so that a busy machine slows both alike; both are compiled first: start and compilation are not
counted, file writing is. `job` and `workers` are runs of `launcher submit infer`, `job` from the
first instruction to the last, against a process that does nothing but the loop; with --loop N it
paints N pictures of the 200, and the rest are reckoned from their pace, which is then said. The
loop has all cores to itself; --npus W shares the same cores among W workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.tiny import MODEL

BARS = {"steady": 1.6, "job": 2.0, "workers": 1.8}


def ours(folder: Path, given: argparse.Namespace) -> Any:
    """Return what paints prompts as the worker does, into a folder."""
    import mindspore as ms

    from jobs import batches, pictures, sampling
    from jobs.specs import InferSpec, PromptRow

    side = given.side
    painter = sampling.Painter(folder, ms.float32, width=side, height=side, batch=given.batch)
    painter.compile(texts=True)

    def paint(prompts: list[str], out: Path) -> None:
        rows = tuple(PromptRow(line=n, prompt=text) for n, text in enumerate(prompts, start=1))
        spec = InferSpec(
            prompts=rows, width=side, height=side, steps=given.steps, batch_size=given.batch
        )
        for batch in batches.plan(rows, spec):
            found = painter.paint(batch.slots, steps=batch.steps, scheduler=given.scheduler)
            for slot, request in enumerate(batch.slots):
                if request is not None:
                    png = pictures.to_png(pictures.to_pixels(found[slot]))
                    (out / f"{request.line}.png").write_bytes(png)

    return paint


def theirs(folder: Path, given: argparse.Namespace) -> Any:
    """Return what paints prompts as the reference does: one at a time."""
    import mindspore as ms
    from mindone.diffusers import StableDiffusionXLPipeline

    from jobs import schedules

    pipe = StableDiffusionXLPipeline.from_pretrained(str(folder), mindspore_dtype=ms.float32)
    pipe.set_progress_bar_config(disable=True)
    if given.scheduler:
        pipe.scheduler = schedules.configured(given.scheduler, pipe.scheduler.config)

    def paint(prompts: list[str], out: Path) -> None:
        for number, prompt in enumerate(prompts):
            found = pipe(
                prompt, width=given.side, height=given.side,
                num_inference_steps=given.steps, guidance_scale=7.5,
            )  # fmt: skip
            found[0][0].save(out / f"{number}.png")

    return paint


def steady(given: argparse.Namespace, place: Path) -> float:
    """Return the ratio of pictures a second, ours to the loop's, in turns."""
    folder = MODEL
    painters = {"ours": ours(folder, given), "reference's loop": theirs(folder, given)}
    for paint in painters.values():
        paint(["to compile"], place)
    rates: dict[str, list[float]] = {key: [] for key in painters}
    for turn in range(given.rounds):
        for key, paint in painters.items():
            prompts = [f"a red circle, {turn} {n}" for n in range(given.pictures)]
            began = time.monotonic()
            paint(prompts, place)
            rates[key].append(given.pictures / (time.monotonic() - began))
    for key, found in rates.items():
        print(f"{key}: {statistics.median(found):.3f} img/s {[round(r, 3) for r in found]}")
    return statistics.median(a / b for a, b in zip(*rates.values(), strict=True))


def loop(given: argparse.Namespace, place: Path) -> None:
    """Be the reference's program: print how long start, first picture and the rest took."""
    began = time.time() - age()
    paint = theirs(MODEL, given)
    paint(["a red circle"], place)
    first = time.time()
    paint([f"a red circle, {n}" for n in range(1, given.pictures)], place)
    rest = (time.time() - first) / max(given.pictures - 1, 1)
    print(json.dumps({"first_s": first - began, "picture_s": rest, "count": given.pictures}))


def age() -> float:
    """Return how long this process has lived, in seconds."""
    from jobs.infer import age

    return age()


def reference(given: argparse.Namespace, place: Path, count: int, mode: str) -> dict[str, float]:
    """Run the loop in a process of its own and return what it prints."""
    flags = ["--steps", given.steps, "--side", given.side, "--pictures", count, "--mode", mode]
    command = [sys.executable, __file__, "loop", *flags]
    found: dict[str, float] = json.loads(run(command).splitlines()[-1])
    return found


def run(command: list[Any], **options: Any) -> str:
    """Run a command to its end and return what it prints."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, **options)
    if done.returncode:
        sys.exit(f"{command}: ended with {done.returncode}")
    return done.stdout.decode()


def submit(given: argparse.Namespace, place: Path, name: str, count: int, **how: Any) -> Any:
    """Paint prompts by the launcher; return its wall seconds and result.json."""
    prompts = place / f"{name}.jsonl"
    row = how.get("row", lambda _: {})
    rows = [{"prompt": f"a red circle, {n}", **row(n)} for n in range(count)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"width": given.side, "height": given.side, "batch_size": given.batch}
    sets = [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    code = "import sys; from launcher.cli import main; sys.exit(main(sys.argv[1:]))"
    bound = ["taskset", "-c", how["core"]] if "core" in how else []
    command = [*bound, sys.executable, "-c", code, "submit", "infer", "--backend", "local",
               "--wait", "--store", place / "runs", "--prompts", prompts, "--steps", given.steps,
               *sets, "--npus", how.get("npus", 1), "--name", name]  # fmt: skip
    if given.scheduler:
        command += ["--scheduler", given.scheduler]
    threads = {"LAUNCHER_THREADS": str(how["threads"])} if "threads" in how else {}
    began = time.monotonic()
    run(command, env={**os.environ, **threads}, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    return seconds, json.loads((place / "runs" / name / "result.json").read_bytes())


def job(given: argparse.Namespace, place: Path) -> float:
    """Return the ratio of a whole job's seconds, the loop's to ours."""
    submit(given, place, "warm-up", given.batch * given.npus, npus=given.npus)
    seconds, result = submit(given, place, "job", given.prompts, npus=given.npus)
    told = f"{given.npus} workers, {result['img_s']} img/s while painting, {result['split_s']}"
    print(f"ours: {seconds:.1f} s for {given.prompts} pictures, {told}", flush=True)
    count = min(given.loop or given.prompts, given.prompts)
    found = reference(given, place, count, "graph")
    whole = found["first_s"] + (given.prompts - 1) * found["picture_s"]
    how = "" if count == given.prompts else f" (reckoned from {count})"
    told = f"first picture after {found['first_s']:.1f} s, then {found['picture_s']:.3f} s each"
    print(f"reference's loop: {whole:.1f} s for {given.prompts} pictures{how}: {told}")
    return whole / seconds


def workers(given: argparse.Namespace, place: Path) -> float:
    """Return the ratio of pictures a second, two workers to one, each with one thread, in turns.

    What the machine leaves of it is told too: of two runs of one worker at once, on a core each.
    """
    for npus in (1, 2):
        submit(given, place, f"warm-{npus}", given.batch * npus, npus=npus, threads=1)
    rates: dict[str, list[float]] = {"1 worker": [], "2 workers": [], "two runs at once": []}
    cores = sorted(os.sched_getaffinity(0))[:2]
    for n in range(given.rounds):
        for npus, found in zip((1, 2), rates.values(), strict=False):
            name = f"run-{npus}-{n}"
            _, result = submit(given, place, name, given.pictures, npus=npus, threads=1)
            found.append(result["img_s"])
        with ThreadPoolExecutor(len(cores)) as both:
            runs = [
                both.submit(
                    submit, given, place, f"apart-{core}-{n}", given.pictures, threads=1, core=core
                )
                for core in cores
            ]
            rates["two runs at once"].append(sum(run.result()[1]["img_s"] for run in runs))
    medians = [statistics.median(found) for found in rates.values()]
    for (name, found), median in zip(rates.items(), medians, strict=True):
        told = [round(rate, 3) for rate in found]
        print(f"{name}: {median:.3f} img/s {told}: {median / medians[0]:.2f} of one worker")
    return medians[1] / medians[0]


def pynative(given: argparse.Namespace, place: Path) -> float:
    """Return the ratio of seconds a picture, the loop in PyNative mode to ours; no bar."""
    submit(given, place, "warm-up", given.batch)
    _, result = submit(given, place, "ours", max(given.pictures, given.batch))
    modes = {mode: reference(given, place, 3, mode) for mode in ("graph", "pynative")}
    for mode, found in modes.items():
        print(f"reference's loop, {mode}: {found['picture_s']:.2f} s a picture")
    print(f"ours: {1 / result['img_s']:.3f} s a picture")
    ratio = modes["pynative"]["picture_s"] / modes["graph"]["picture_s"]
    print(f"the loop itself, pynative to graph: {ratio:.1f}")
    return modes["pynative"]["picture_s"] * result["img_s"]


def schedulers(given: argparse.Namespace, place: Path) -> None:
    """Print seconds a denoising step of a batch, of one run in which all schedulers paint."""
    from typing import get_args

    from jobs.inferspec import Scheduler

    names = get_args(Scheduler)
    count = given.batch * given.rounds * len(names)
    submit(given, place, "warm-up", given.batch * given.npus, npus=given.npus)
    _, result = submit(
        given,
        place,
        "all",
        count,
        npus=given.npus,
        row=lambda n: {"scheduler": names[n // given.batch % len(names)]},
    )
    for name, seconds in result["s_per_step"].items():
        print(f"{name}: {seconds} s a step of {given.batch} pictures")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {
        "steady": steady,
        "job": job,
        "workers": workers,
        "pynative": pynative,
        "loop": loop,
        "schedulers": schedulers,
    }
    parser.add_argument("part", choices=parts, nargs="?", default="steady")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--loop", type=int, default=0, help="pictures of the loop; 0 is all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scheduler", default=None)
    parser.add_argument("--npus", type=int, default=1, help="workers of `job` and `schedulers`")
    parser.add_argument("--mode", default="graph", choices=["graph", "pynative"])
    given = parser.parse_args()
    if given.part in ("steady", "loop"):
        import mindspore as ms

        ms.set_device("CPU")
        # The default mode as users meet it; see jobs.compat for what slows it down.
        ms.set_context(mode=ms.GRAPH_MODE if given.mode == "graph" else ms.PYNATIVE_MODE)
    with tempfile.TemporaryDirectory() as name:
        ratio = parts[given.part](given, Path(name))
    if ratio is not None:
        bar = f" (wanted: {BARS[given.part]})" if given.part in BARS else ""
        print(f"{given.part}: {ratio:.2f}{bar}")


if __name__ == "__main__":
    main()
