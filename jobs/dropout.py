"""Owns dropout whose masks are a function of a key, inside a compiled graph.

MindSpore's own Dropout cannot be set back to where a run was stopped (measured), and masks from the
host would be gigabytes a step. So a mask is a hash of (key of the sample, module, token, feature),
in fp32 numbers that stay whole: products are below 2^24, where fp32 is exact on any device.

B samples, T tokens, F features.
"""

from __future__ import annotations

import zlib

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

PRIME = 4091
"""Largest prime below 2^12 that is 2 modulo 3, so that cubing permutes the residues."""
KEY_NAME = "dropout_key"


def new_key(batch: int) -> Parameter:
    """Return the Parameter that all masks of a step are made of: [B, 2], set before the step."""
    return Parameter(Tensor(np.zeros((batch, 2), np.float32)), name=KEY_NAME, requires_grad=False)


class Dropout(nn.Cell):  # type: ignore[misc]
    """Leaves out a part of what comes in and makes the rest larger (Srivastava et al. 2014)."""

    def __init__(self, rate: float, key: Parameter, name: str, features: int) -> None:
        """Make the dropout of one module.

        Args:
            rate: the part that is left out, a multiple of 1 / PRIME in effect.
            key: the one of the step.
            name: of the module; no two modules have the same masks.
            features: F.
        """
        super().__init__()
        self.key = key
        self.least = float(round(rate * PRIME))
        self.grow = PRIME / (PRIME - self.least)
        rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
        self.module = tuple(float(value) for value in rng.integers(0, PRIME, 2))
        self.columns = Tensor(rng.integers(1, PRIME, (1, 1, features)).astype(np.float32))

    def construct(self, x: Tensor) -> Tensor:
        """Return [B, ..., F] for [B, ..., F]."""
        batch, features = x.shape[0], x.shape[-1]
        rows = x.reshape(batch, -1, features)  # [B, ..., F] -> [B, T, F]
        place = ops.arange(0, rows.shape[1], 1, dtype=ms.float32).reshape(1, -1, 1)
        high = ops.floor(place * (1.0 / PRIME))
        one, two = self.key[:, 0].reshape(-1, 1, 1), self.key[:, 1].reshape(-1, 1, 1)
        factor = cube(cube(place + one + self.module[0]) + high + two)  # [B, T, 1]
        offset = cube(factor + one + self.module[1])
        # Linear in the column, then not: pairs and whole rows are told apart alike.
        drawn = whole(cube(modulo(factor * self.columns + offset) + two))  # 0..PRIME-1, [B, T, F]
        mask = (drawn >= self.least).astype(ms.float32) * self.grow
        return (rows * mask.astype(x.dtype)).reshape(x.shape)


def modulo(x: Tensor) -> Tensor:
    """Return whole numbers that are x modulo PRIME, in -1..PRIME; x is below 2^24 in size.

    The quotient is rounded, so that a multiple of PRIME may leave PRIME, and one less -1. Both are
    right modulo PRIME, and small enough to go on with: PRIME^2 + 2 PRIME is below 2^24.
    """
    return x - ops.floor(x * (1.0 / PRIME)) * PRIME


def cube(x: Tensor) -> Tensor:
    """Return x^3 modulo PRIME, in the same range."""
    x = modulo(x)
    return modulo(modulo(x * x) * x)


def whole(x: Tensor) -> Tensor:
    """Return what `modulo` left in 0..PRIME-1."""
    x = ops.select(x < 0.0, x + PRIME, x)
    return ops.select(x >= PRIME, x - PRIME, x)
