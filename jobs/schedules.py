"""Owns samplers as tables of numbers: mindone's scheduler, stepped once on unit vectors, in numpy.

Every sampler here is linear: the next latents are a weighted sum of latents, predictions and noise
of this and a few earlier steps. So the weights are read off mindone's own scheduler once for each
(scheduler, number of steps), and a step of a batch is that sum. Stepping the scheduler itself
costs some twenty operators a step, and a second for LMS's integrals. Must not predict or draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.compat import eager
from jobs.errors import BadSpec

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

CLASSES = {
    "DDIM": "DDIMScheduler",
    "DDIMParallel": "DDIMParallelScheduler",
    "LMS": "LMSDiscreteScheduler",
    "DPMSolverSinglestep": "DPMSolverSinglestepScheduler",
    "DPMSolverMultistep": "DPMSolverMultistepScheduler",
    "EulerDiscrete": "EulerDiscreteScheduler",
    "EulerAncestral": "EulerAncestralDiscreteScheduler",
}
"""Name in a spec -> class of mindone."""
SDXL_KEYS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "timestep_spacing": "leading",
    "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
"""Of SDXL base 1.0, for what a model's own configuration leaves out: DDIM made of one without
`clip_sample` clips its latents and paints badly."""
NOT_LINEAR = ("clip_sample", "thresholding")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what the UNet is given, and what the next latents are made of."""

    time: float
    """Time step that the UNet is told."""
    scale: float
    """Factor on the latents that the UNet is given."""
    latents: Mapping[int, float]
    """Step whose latents count -> weight."""
    predictions: Mapping[int, float]
    """Step whose prediction counts -> weight."""
    noise: float
    """Weight of fresh standard normal noise; 0 where the sampler draws none."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """All steps of one scheduler."""

    name: str
    """As a spec says it, or the class of a scheduler that no spec can name."""
    sigma: float
    """Factor on the first noise."""
    steps: tuple[Step, ...]

    def run(
        self, noise: Floats, predict: Callable[[Floats, float], Floats],
        fresh: Callable[[int], Floats],
    ) -> Floats:  # fmt: skip
        """Return the last latents.

        Args:
            noise: the first, standard normal, [B, C, h, w].
            predict: (scaled latents, time step) -> prediction of the same shape.
            fresh: step (from 0) -> standard normal noise of the same shape.
        """
        seen = {0: noise * np.float32(self.sigma)}
        said: dict[int, Floats] = {}
        for index, step in enumerate(self.steps):
            said[index] = predict(seen[index] * np.float32(step.scale), step.time)
            # In fp64, in a fixed order: the sum of a long history keeps its last bit.
            after = np.zeros(noise.shape, np.float64)
            for weights, arrays in ((step.latents, seen), (step.predictions, said)):
                for at, weight in weights.items():
                    after += weight * arrays[at].astype(np.float64)
            if step.noise:
                after += step.noise * fresh(index).astype(np.float64)
            seen[index + 1] = after.astype(np.float32)
            _forget(self.steps[index + 1 :], index + 1, seen, said)
        return seen[len(self.steps)]


def _forget(left: tuple[Step, ...], now: int, *histories: dict[int, Floats]) -> None:
    """Drop what no later step of a few reads; no sampler here looks back further than four."""
    near = left[:_WINDOW]
    for history, read in zip(
        histories, ([s.latents for s in near], [s.predictions for s in near]), strict=True
    ):
        wanted = {at for weights in read for at in weights} | {now}
        for at in [at for at in history if at not in wanted]:
            del history[at]


_WINDOW = 8


def configured(name: str | None, found: Mapping[str, Any]) -> Any:
    """Return mindone's scheduler: the one named, made from the model's configuration, or its own.

    Args:
        name: a key of CLASSES; none means the model's own.
        found: the model's scheduler_config.json.

    Raises:
        BadSpec: mindone has no such scheduler, or its steps would not be linear.
    """
    import mindone.diffusers as diffusers

    chosen = CLASSES[name] if name else str(found.get("_class_name", CLASSES["EulerDiscrete"]))
    kind = getattr(diffusers, chosen, None)
    if kind is None or not chosen.endswith("Scheduler"):
        raise BadSpec(f"scheduler {chosen}: mindone has none; choose one of {', '.join(CLASSES)}")
    scheduler = kind.from_config({**SDXL_KEYS, **found})
    for key in NOT_LINEAR:
        if scheduler.config.get(key):
            raise BadSpec(
                f"scheduler {chosen}: {key} is set in the model's scheduler_config.json, which "
                "pictures in pixels want and latents do not; set it to false"
            )
    return scheduler


def table(name: str | None, config: Mapping[str, Any], steps: int) -> Schedule:
    """Return the table of a scheduler made from a model's configuration.

    Raises:
        BadSpec: the two do not fit each other, or that number of steps.
    """
    what = f"scheduler {name or config.get('_class_name')} of {steps} steps"
    try:
        found = read_off(configured(name, config), steps)
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadSpec(
            f"{what}: the model's scheduler_config.json does not fit ({reason})"
        ) from error
    numbers = [
        number
        for step in found.steps
        for number in (step.scale, step.noise, *step.latents.values(), *step.predictions.values())
    ]
    if not np.all(np.isfinite(numbers)):
        raise BadSpec(
            f"{what}: the model's scheduler_config.json gives no numbers; without a signal at its "
            "first step (rescale_betas_zero_snr) only v_prediction can begin there"
        )
    return found


def read_off(scheduler: Any, steps: int) -> Schedule:
    """Return the table of a scheduler of mindone for a number of steps.

    Each step is given a latent, a prediction and a noise that nothing else has: unit vectors. The
    result's coordinates are the weights.
    """
    import mindspore as ms

    kind = type(scheduler).__name__
    name = {known: short for short, known in CLASSES.items()}.get(kind, kind)
    with eager():
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "get_lms_coefficient"):
            sigmas = np.asarray(scheduler.sigmas.asnumpy(), np.float64)
            scheduler.get_lms_coefficient = partial(lms_coefficient, sigmas)
        times = np.asarray(scheduler.timesteps.asnumpy(), np.float64)
        count = len(times)
        units = np.eye(3 * count, dtype=np.float32).reshape(3, count, 1, 3 * count, 1, 1)
        rows = []
        for index, time in enumerate(scheduler.timesteps):
            latent, said, drawn = (ms.Tensor(part[index]) for part in units)
            scaled = scheduler.scale_model_input(latent, time).asnumpy().ravel()
            after = _stepped(scheduler, said, time, latent, drawn).asnumpy().ravel()
            weights = after.astype(np.float64).reshape(3, count)
            rows.append(
                Step(
                    time=float(times[index]),
                    scale=float(scaled[index]),
                    latents=_nonzero(weights[0]),
                    predictions=_nonzero(weights[1]),
                    noise=float(weights[2, index]),
                )
            )
        sigma = float(scheduler.init_noise_sigma)
    return Schedule(name, sigma, tuple(rows))


def _stepped(scheduler: Any, said: Any, time: Any, latent: Any, drawn: Any) -> Any:
    import inspect

    names = inspect.signature(scheduler.step).parameters
    more = {"generator": _Given(drawn.asnumpy())} if "generator" in names else {}
    return scheduler.step(said, time, latent, **more)[0]


class _Given:
    """A generator, as schedulers draw from one, that returns what it was given."""

    def __init__(self, value: Floats) -> None:
        self.value = value

    def standard_normal(self, *_: Any, **__: Any) -> Floats:
        return self.value


def _nonzero(weights: Doubles) -> dict[int, float]:
    return {int(at): float(weights[at]) for at in np.flatnonzero(weights)}


def lms_coefficient(sigmas: Doubles, order: int, t: int, current: int) -> float:
    """Return the integral of one Lagrange polynomial of the linear multistep method, exactly.

    The method of Katherine Crowson's k-diffusion (`linear_multistep_coeff`), which integrates
    numerically: the product over k != `current` of (s - s[t-k]) / (s[t-current] - s[t-k]), from
    sigmas[t] to sigmas[t+1].
    """
    others = [sigmas[t - k] for k in range(order) if k != current]
    whole = np.polyint(np.atleast_1d(np.poly(others)))
    area = np.polyval(whole, sigmas[t + 1]) - np.polyval(whole, sigmas[t])
    return float(area / np.prod([sigmas[t - current] - other for other in others]))
