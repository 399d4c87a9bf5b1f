"""Owns the inputs of a step: which sample stands where, its noise, its target.

Every number is a function of (seed, step, place in the global batch). Must not compute embeddings
or latents' moments (see latents); what is random comes from draws.

Source of the noise that is constant over a channel: N. Guttenberg 2023, "Diffusion with offset
noise" (crosslabs.org).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from jobs import diffusion, draws, model
from jobs.dropout import PRIME
from jobs.environment import Worker
from jobs.errors import BadSpec
from jobs.latents import Encoded
from jobs.specs import TrainSpec

Columns = tuple[NDArray[Any], ...]
"""Of a batch: one array per input of the loss."""


class Feed:
    """The inputs of a step, as functions of (seed, step, place in the global batch)."""

    def __init__(self, encoded: Encoded, spec: TrainSpec, worker: Worker, folder: Path) -> None:
        """Read how the model wants its noise.

        Raises:
            BadSpec: captions are to be dropped, and the model has no zeros for none.
        """
        self.encoded, self.spec, self.worker = encoded, spec, worker
        scheduler = model.config(folder, "scheduler")
        self.alpha_bars = diffusion.alpha_bars(scheduler)
        given = str(scheduler.get("prediction_type", "epsilon"))
        self.prediction = spec.prediction_type or given
        self.scaling = float(model.config(folder, "vae")["scaling_factor"])
        zeros = model.config(folder, "").get("force_zeros_for_empty_prompt", True)
        if spec.caption_dropout and not zeros:
            raise BadSpec(
                "caption_dropout: this model's pipeline has force_zeros_for_empty_prompt off, and "
                "only captions that become zeros can be dropped; set caption_dropout to 0"
            )
        self._reader = ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[tuple[int, int], Future[Columns]] | None = None

    def first(self, step: int, part: int) -> int:
        """Return the position in the run of the first sample of this worker's batch.

        A step's positions are the same ones however they are split into workers and parts.
        """
        batch = step * self.spec.accumulate + part
        return (batch * self.worker.world + self.worker.rank) * self.spec.batch_size

    def inputs(self, step: int, part: int = 0) -> tuple[Tensor, ...]:
        """Return what the loss takes in batch `part` of step number `step` (both from 0).

        The batch after it is read and drawn by a thread while the device computes.
        """
        place = (step, part)
        if self._ahead and self._ahead[0] == place:
            columns = self._ahead[1].result()
        else:
            columns = self._columns(*place)
        after = (step, part + 1) if part + 1 < self.spec.accumulate else (step + 1, 0)
        self._ahead = (after, self._reader.submit(self._columns, *after))
        return tuple(Tensor(column) for column in columns)

    def dropout_key(self, step: int, part: int) -> Tensor:
        """Return the key [B, 2] of the same batch's dropout masks."""
        first, seed = self.first(step, part), self.spec.seed
        places = range(first, first + self.spec.batch_size)
        return Tensor(np.stack([draws.dropout_key(seed, place, PRIME) for place in places]))

    def _columns(self, step: int, part: int) -> Columns:
        first = self.first(step, part)
        rows = [self._sample(first + place) for place in range(self.spec.batch_size)]
        return tuple(np.stack(column) for column in zip(*rows, strict=True))

    def _sample(self, position: int) -> tuple[Any, ...]:
        spec, seed, encoded = self.spec, self.spec.seed, self.encoded
        index = draws.sample_index(seed, position, encoded.count)
        view = draws.view(seed, position, encoded.views)
        variant = draws.variant(seed, position, encoded.variants(index))
        moments, time_ids, text, text_2 = encoded.row(index, view, variant)
        shape = (moments.shape[0] // 2, *moments.shape[1:])
        clean = diffusion.latents(
            moments, draws.posterior_noise(seed, position, shape), self.scaling
        )
        noise = draws.training_noise(seed, position, shape)
        if spec.noise_offset:
            offset = draws.offset_noise(seed, position, shape[0])
            noise = noise + np.float32(spec.noise_offset) * offset
        time_step = draws.timestep(seed, position, len(self.alpha_bars))
        level = float(self.alpha_bars[time_step])
        keep = draws.keeps_caption(seed, position, spec.caption_dropout)
        return (
            diffusion.noisy(clean, noise, level),
            np.int32(time_step),
            time_ids,
            diffusion.target(clean, noise, level, self.prediction),
            np.float32(diffusion.loss_weight(level, spec.snr_gamma, self.prediction)),
            np.float32(keep),
            text,
            text_2,
        )
