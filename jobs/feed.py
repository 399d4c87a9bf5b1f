"""Owns the inputs of a step: which sample stands where, its noise, its target.

Every number is a function of (seed, step, place in the global batch). Must not compute
embeddings or latents' moments (see latents), and draws nothing itself (see draws).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from jobs import diffusion, draws, model
from jobs.environment import Worker
from jobs.latents import Encoded
from jobs.specs import TrainSpec


class Feed:
    """The inputs of a step, as functions of (seed, step, place in the global batch)."""

    def __init__(self, encoded: Encoded, spec: TrainSpec, worker: Worker, folder: Path) -> None:
        self.encoded, self.spec, self.worker = encoded, spec, worker
        scheduler = model.config(folder, "scheduler")
        self.alpha_bars = diffusion.alpha_bars(scheduler)
        self.prediction = str(scheduler.get("prediction_type", "epsilon"))
        self.scaling = float(model.config(folder, "vae")["scaling_factor"])

    def inputs(self, step: int) -> tuple[Tensor, ...]:
        """Return the arguments of step number `step` (from 0), this worker's part of the batch."""
        first = (step * self.worker.world + self.worker.rank) * self.spec.batch_size
        rows = [self._sample(first + place) for place in range(self.spec.batch_size)]
        return tuple(Tensor(np.stack(column)) for column in zip(*rows, strict=True))

    def _sample(self, position: int) -> tuple[Any, ...]:
        seed, encoded = self.spec.seed, self.encoded
        index = draws.sample_index(seed, position, encoded.count)
        view = draws.view(seed, position, encoded.views)
        moments, time_ids, text, text_2 = encoded.row(index, view)
        shape = (moments.shape[0] // 2, *moments.shape[1:])
        clean = diffusion.latents(
            moments, draws.posterior_noise(seed, position, shape), self.scaling
        )
        noise = draws.training_noise(seed, position, shape)
        time_step = draws.timestep(seed, position, len(self.alpha_bars))
        level = float(self.alpha_bars[time_step])
        return (
            diffusion.noisy(clean, noise, level),
            np.int32(time_step),
            time_ids,
            diffusion.target(clean, noise, level, self.prediction),
            text,
            text_2,
        )
