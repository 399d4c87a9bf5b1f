"""Measures what a step of SDXL costs in memory, on a cut of its UNet that fits a small machine.

    python tests/bench/memory.py [--blocks 1 2 2] [--side 512] [--method lora] [--recompute]
                                 [--threads 2] [--widths 320 640 1280]

The UNet is SDXL's own configuration with fewer transformer blocks in its deepest levels (SDXL has
`--blocks 1 2 10`; `1 2 2` is 0.9 of 2.57 billion parameters), built, adapted and compiled by the
trainer's own code: two steps in fp32 at batch 1, on random inputs of a real run's shapes. Prints
the peak of resident memory while loading and while stepping, seconds of both steps, and the
arithmetic to the whole UNet.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.environment import Worker
from jobs.specs import TrainSpec

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
"""unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, without what is a default."""
WHOLE = 2_567_463_684
"""Parameters of SDXL's UNet."""
GIB = 2**30


def peak() -> int:
    """Return the peak of resident memory since the last `forget`, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def resident() -> int:
    """Return the resident memory, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def forget() -> None:
    """Begin the peak anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def inputs(side: int) -> tuple[Any, ...]:
    """Return what a step takes of one picture, as the feed gives it."""
    from mindspore import Tensor

    rng = np.random.default_rng(0)
    shape = (1, 4, side // 8, side // 8)
    noisy, target = (rng.standard_normal(shape, np.float32) for _ in range(2))
    embeds = rng.standard_normal((1, 77, 2048), np.float32)
    pooled = rng.standard_normal((1, 1280), np.float32)
    ids = np.asarray([[side, side, 0, 0, side, side]], np.float32)
    ones = np.ones(1, np.float32)
    rows = (noisy, np.asarray([500], np.int32), ids, target, ones, ones, embeds, pooled)
    return tuple(Tensor(row) for row in rows)


def build(given: argparse.Namespace, spec: TrainSpec) -> tuple[Any, int]:
    """Return the trainer's step on the cut, and the number of the UNet's parameters."""
    import mindspore as ms
    from mindone.diffusers import UNet2DConditionModel

    from jobs import methods, model

    settings = SDXL | {
        "transformer_layers_per_block": tuple(given.blocks),
        "block_out_channels": tuple(given.widths),
    }
    sizes: list[int] = []

    def cut(*_: Any, **__: Any) -> Any:
        cell = UNet2DConditionModel.from_config(settings)
        sizes.append(sum(p.size for p in cell.get_parameters()))
        return model._frozen(cell)

    model.load_unet = cut  # in place of the files: there is no folder with these weights
    step, _ = methods.build(Path(), ms.float32, spec, Worker(0, 1))
    return step, sizes[0]


def main() -> None:
    """Do two steps and tell what they took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, nargs=3, default=[1, 2, 2])
    parser.add_argument("--widths", type=int, nargs=3, default=[320, 640, 1280])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--method", choices=("lora", "vanilla"), default="lora")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])

    import mindspore as ms

    from jobs import train

    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    spec = TrainSpec.model_validate(
        {"method": given.method, "precision": "fp32", "resolution": given.side,
         "recompute": given.recompute}
    )  # fmt: skip
    began = time.monotonic()
    step, count = build(given, spec)
    told: dict[str, Any] = {
        "unet": count, "trained": sum(p.size for g in step.update.groups() for p in g.weights),
        "side": given.side, "method": given.method, "recompute": given.recompute,
        "build_s": round(time.monotonic() - began, 1), "build_peak_gib": round(peak() / GIB, 2),
        "built_gib": round(resident() / GIB, 2),
    }  # fmt: skip
    forget()
    seconds, losses, batch = [], [], inputs(given.side)
    for done in range(2):
        began = time.monotonic()
        losses.append(step([batch], train.scalars(spec, done)).loss)
        seconds.append(round(time.monotonic() - began, 1))
    weights = 4 * count
    rest = peak() - weights
    told |= {
        "steps_s": seconds, "losses": losses, "step_peak_gib": round(peak() / GIB, 2),
        # Weights grow with the parameters. The rest is activations, of which each transformer
        # block keeps as much as the next one; it is taken to grow like them.
        "weights_gib": round(weights / GIB, 2),
        "rest_gib": round(rest / GIB, 2),
        "whole_gib": [round(x / GIB, 1) for x in (4 * WHOLE + rest, (peak() / count) * WHOLE)],
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
