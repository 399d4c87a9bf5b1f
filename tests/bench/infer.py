"""Measures pictures a second: our worker's painting against the reference's loop.

    python tests/bench/infer.py [--pictures 12] [--steps 30] [--batch 4] [--side 128]

The reference's loop calls mindone's StableDiffusionXLPipeline with one prompt at a time, in graph
mode; ours paints batches. Both paint the same prompts with the same weights (the tiny model), in
turns, so that a busy machine slows both alike. Both are compiled first: start and compilation are
not counted, file writing is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

BAR = 1.6


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scheduler", default=None)
    given = parser.parse_args()
    import mindspore as ms

    from jobs.compat import eager
    from jobs.tiny import pipeline

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "model", Path(name)
        with eager():
            pipeline.write_folder(folder)
        painters = {"ours": ours(folder, given), "reference's loop": theirs(folder, given)}
        for paint in painters.values():
            paint(["to compile"], out)
        rates: dict[str, list[float]] = {key: [] for key in painters}
        for turn in range(given.rounds):
            for key, paint in painters.items():
                prompts = [f"a red circle, {turn} {n}" for n in range(given.pictures)]
                began = time.monotonic()
                paint(prompts, out)
                rates[key].append(given.pictures / (time.monotonic() - began))
        for key, found in rates.items():
            print(f"{key}: {statistics.median(found):.3f} img/s {[round(r, 3) for r in found]}")
        pairs = zip(*rates.values(), strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"ratio: {ratio:.2f} (wanted: {BAR})")


if __name__ == "__main__":
    main()
