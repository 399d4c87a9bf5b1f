"""Owns what goes by the number of the step: learning rate and the average's decay. Pure.

Must not know MindSpore: both are arguments of the compiled step.
"""

from __future__ import annotations

import math

from jobs.specs import Schedule


def factor(schedule: Schedule, done: int, *, steps: int, warmup: int, cycles: int = 1) -> float:
    """Return what the learning rate is multiplied with in the step after `done` steps.

    The warm-up rises from 1 / warmup to 1, so that no step is wasted on a rate of 0, and the
    schedule goes from 1 to what is just above 0 over the other steps.

    Source: cosine and its restarts, Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5.
    """
    if done < warmup:
        return (done + 1) / warmup
    progress = (done - warmup) / max(1, steps - warmup)  # in 0..1, below 1
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine-restarts":
        progress = cycles * progress % 1.0
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def average_decay(limit: float, done: int) -> float:
    """Return the decay of the weights' moving average in the step after `done` steps.

    (1 + n) / (10 + n) for n steps before, up to `limit`, so that the first weights, which are the
    base model's, do not stay for long (the warm-up of TensorFlow's ExponentialMovingAverage, which
    diffusers has too).
    """
    return min(limit, (1.0 + done) / (10.0 + done))
