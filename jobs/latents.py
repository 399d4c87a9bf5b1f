"""Owns what the frozen parts say of the pictures: VAE moments and caption embeddings, on disk.

Computed once per attempt, each worker its share, one picture at a time, so that the numbers do
not depend on the number of workers. Must not draw random numbers of its own (see draws).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from jobs import model
from jobs.compat import eager
from jobs.data import Captioned
from jobs.environment import Environment, Worker
from jobs.errors import Stopped
from jobs.outbox import Outbox
from jobs.specs import TrainSpec

Array = NDArray[Any]
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Encoded:
    """Memory-mapped arrays, one row a picture."""

    moments: Array
    """[N, 2C, h, w] fp32: mean and log variance."""
    time_ids: Array
    """[N, 6] fp32."""
    text: Array
    """[N, 77, d] fp32 embeddings, or [N, 77] int32 ids where the encoders are trained."""
    text_2: Array
    """[N, p] fp32 pooled embeddings, or [N, 77] int32 ids of the second tokenizer."""


def encode(
    captioned: Captioned, folder: Path, kind: Any, spec: TrainSpec, env: Environment, worker: Worker
) -> Encoded:
    """Compute this worker's share, wait for the others' and return all of it.

    Raises:
        BadData: a picture cannot be read; it is named.
    """
    vae = model.load_vae(folder)
    encoders = model.load_text_encoders(folder, kind)
    outbox = Outbox(env.work)
    root = env.work / "encoded"
    share = range(worker.rank, len(captioned.captions), worker.world)
    rows: dict[str, list[Array]] = {"moments": [], "time_ids": [], "text": [], "text_2": []}
    for index in share:
        if outbox.stop.exists():
            raise Stopped("stopped before the first step")
        picture = captioned.picture(index, spec.resolution)
        with eager():
            moments = vae.encode(Tensor(picture.pixels[None]))[0].astype(ms.float32).asnumpy()[0]
        trained_text = spec.method == "lora-te"
        caption = captioned.captions[index]
        text, text_2 = encoders.tokens(caption) if trained_text else encoders.encode(caption)
        for name, row in zip(rows, (moments, picture.time_ids, text, text_2), strict=True):
            rows[name].append(row)
        outbox.beat(worker.rank)
    root.mkdir(exist_ok=True)
    for name, found in rows.items():
        if found:
            np.save(root / f"{name}-{worker.rank}.npy", np.stack(found))
    (root / f"ready-{worker.rank}").touch()
    # A worker that dies takes the others with it (msrun), so the wait needs no end of its own.
    while not all((root / f"ready-{rank}").exists() for rank in range(worker.world)):
        if outbox.ended():  # one was asked to stop before it was ready
            raise Stopped("stopped before the first step")
        time.sleep(POLL_SECONDS)
        outbox.beat(worker.rank)
    return Encoded(**{name: _gather(root, name, len(captioned.captions), worker) for name in rows})


def _gather(root: Path, name: str, count: int, worker: Worker) -> Array:
    parts = [
        np.load(path, mmap_mode="r")
        for path in (root / f"{name}-{rank}.npy" for rank in range(worker.world))
        if path.exists()
    ]
    path = root / f"{name}-all-{worker.rank}.npy"
    shape = (count, *parts[0].shape[1:])
    everything = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, "w+", dtype=parts[0].dtype, shape=shape
    )
    for rank, part in enumerate(parts):
        everything[rank :: worker.world] = part
    return np.asarray(everything)
