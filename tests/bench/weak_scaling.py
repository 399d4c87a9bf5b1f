"""Measures a run of two workers against one of one worker, with the same batch for each worker.

    python tests/bench/weak_scaling.py [--method lora vanilla] [--batch 4] [--rounds 3]

Both are `launcher submit train --backend local`, with one thread and one core for each worker. The
efficiency is the pictures a second of two workers over twice those of one, each the median of the
rounds, which take turns. What the machine leaves of that is told too: of two runs of one worker at
once, on a core each, that exchange nothing. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peers_training import STRETCH, ours, prepare

BARS = {"lora": 0.9, "vanilla": 0.75}


def at_once(method: str, place: Path, name: str, *span: int) -> float:
    """Return the pictures a second of two runs of one worker that go on at once, added up."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with ThreadPoolExecutor(len(cores)) as both:
        runs = [both.submit(ours, method, place, f"{name}-{core}", *span, core) for core in cores]
        return sum(run.result() for run in runs)


def measure(given: argparse.Namespace, place: Path, method: str) -> bool:
    """Print the speed of one and two workers; return whether the bar is held."""
    span = (given.batch, given.steps, given.skip)
    ways: dict[str, Callable[[str], float]] = {
        "one": lambda name: ours(method, place, name, *span, None, 1),
        "two": lambda name: ours(method, place, name, *span, None, 2),
        "at-once": lambda name: at_once(method, place, name, *span),
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(given.rounds):
        for way, run in ways.items():
            speeds[way].append(run(f"{method}-{way}-{turn}"))
    one, two, ceiling = (statistics.median(found) for found in speeds.values())
    efficiency = two / (2 * one)
    print(
        f"weak scaling, {method}, batch {given.batch} a worker: 1 worker {one:.2f} img/s, "
        f"2 workers {two:.2f} img/s: {efficiency:.2f} (>= {BARS[method]}); two runs at once that "
        f"exchange nothing {ceiling:.2f} img/s: {ceiling / (2 * one):.2f}",
        flush=True,
    )
    return efficiency >= BARS[method]


def main() -> int:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--skip", type=int, default=20)
    given = parser.parse_args()
    if given.skip % STRETCH or given.steps < given.skip + 3 * STRETCH:
        parser.error(f"--skip: tens of steps, and --steps at least {3 * STRETCH} more")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two workers with a core each need two cores")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        kept = [measure(given, place, method) for method in given.method]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
