"""Owns everything a run draws from its seed; every draw is a function of what it is for.

Counter-based generators (Philox; Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3", section 5.3) are keyed by (seed, purpose,
position), never by rank, worker or time: stop and resume
anywhere, on any number of workers, and each number is the same. Must not import MindSpore.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDER, NOISE, TIMESTEP, POSTERIOR, PICTURE, OFFSET, CAPTION, DROPOUT = range(8)
"""Purposes; a new one goes to the end, since the numbers are part of every draw."""

CROP, VIEW, VARIANT = 32, 33, 34
"""The encoder's and the feed's own; numbers of their own, since no purpose may change its."""

(
    TINY_SCENE, TINY_APART, TINY_VAE_NOISE, TINY_TEXT, TINY_HEADS, TINY_CAPTION, TINY_STYLE,
    TINY_PART,
) = range(64, 72)  # fmt: skip
"""The drawings' and the recipe's of the small SDXL."""


def generator(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """Return the generator of one purpose at one position (at most three numbers)."""
    counter = np.zeros(4, np.uint64)
    # The lowest word counts the generator's own blocks; positions fill the other three.
    for index, value in enumerate(position):
        counter[index + 1] = value
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=counter))


def sample_index(seed: int, position: int, count: int) -> int:
    """Return which of `count` samples stands at `position` of the run, epochs one after another."""
    epoch, place = divmod(position, count)
    return int(_order(seed, epoch, count)[place])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return generator(seed, ORDER, epoch).permutation(count)


def training_noise(seed: int, position: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return standard normal noise, fp32."""
    return generator(seed, NOISE, position).standard_normal(shape, np.float32)


def posterior_noise(seed: int, position: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the noise that draws a latent from the VAE's posterior, fp32."""
    return generator(seed, POSTERIOR, position).standard_normal(shape, np.float32)


def timestep(seed: int, position: int, count: int) -> int:
    """Return a time step, uniform in 0..count-1."""
    return int(generator(seed, TIMESTEP, position).integers(count))


def offset_noise(seed: int, position: int, channels: int) -> NDArray[np.float32]:
    """Return standard normal noise that is the same all over a channel, [channels, 1, 1], fp32."""
    return generator(seed, OFFSET, position).standard_normal((channels, 1, 1), np.float32)


def keeps_caption(seed: int, position: int, dropout: float) -> bool:
    """Say whether a sample is trained with its caption: not with probability `dropout`."""
    return bool(generator(seed, CAPTION, position).random() >= dropout)


def dropout_key(seed: int, position: int, bound: int) -> NDArray[np.float32]:
    """Return the key of a sample's dropout masks: two whole numbers below `bound`, [2] fp32."""
    return generator(seed, DROPOUT, position).integers(0, bound, 2).astype(np.float32)


def picture_noise(seed: int, line: int, image: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a picture's first noise, fp32: a function of seed, line and image number alone."""
    return generator(seed, PICTURE, line, image).standard_normal(shape, np.float32)


def crop_place(seed: int, index: int, number: int) -> tuple[float, float]:
    """Return where crop `number` of picture `index` lies, across and down, each in 0..1."""
    across, down = generator(seed, CROP, index, number).random(2)
    return float(across), float(down)


def view(seed: int, position: int, count: int) -> int:
    """Return which of `count` views of its picture the sample at `position` shows."""
    return int(generator(seed, VIEW, position).integers(count))


def variant(seed: int, position: int, count: int) -> int:
    """Return which of `count` captions of its picture the sample at `position` is shown with."""
    return int(generator(seed, VARIANT, position).integers(count))
