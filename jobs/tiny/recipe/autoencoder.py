"""Owns the training of the VAE: drawings of all styles in, weights and scaling factor out.

Must not know text. L1 and mean squared error with a small pull towards N(0, 1) on the latents
(Rombach et al. 2022, arXiv 2112.10752, section 3.1); no adversary and no perceptual network, which
flat drawings do not need.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

from jobs import draws
from jobs.tiny import brush, scenes
from jobs.tiny.recipe.architecture import SIDE, VAE
from jobs.tiny.recipe.fitting import Plan, fit

BATCH = 16
PULL = 1e-4
"""Weight of the divergence from N(0, 1), nats per latent number."""
PHASES = (
    (32, Plan(steps=2000, learning_rate=2e-3, warmup=50)),
    (64, Plan(steps=200, learning_rate=1e-3, warmup=30, save_every=50)),
    (SIDE, Plan(steps=100, learning_rate=7e-4, warmup=20, save_every=25)),
)
"""Side of the pictures' part that is seen, and how long. Most is learned from parts around an
object at a sixteenth of the cost; larger ones then set right what norms make of a part's own mean.
"""
STYLES: tuple[brush.Style, ...] = ("flat", "flat", "hatched", "hatched", "neon")


class Loss(nn.Cell):  # type: ignore[misc]
    """How far decoded pictures are from their originals, and latents from N(0, 1)."""

    def __init__(self, vae: nn.Cell) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return a scalar; pixels [B, 3, H, W] in -1..1, noise [B, 4, H/8, W/8]."""
        moments = self.vae.encode(pixels)[0]
        mean, log_variance = moments[:, :4], ops.clamp(moments[:, 4:], -30.0, 20.0)
        latents = mean + ops.exp(0.5 * log_variance) * noise
        wrong = self.vae.decode(latents)[0] - pixels
        variance = ops.exp(log_variance)
        pull = 0.5 * ops.mean(ops.square(mean) + variance - 1.0 - log_variance)
        return ops.mean(ops.abs(wrong)) + ops.mean(ops.square(wrong)) + PULL * pull


def pixels(seed: int, numbers: range) -> NDArray[np.float32]:
    """Return the drawings of scenes in -1..1, [B, 3, 128, 128]; all styles in turn."""
    rows = []
    for number in numbers:
        style = STYLES[number % len(STYLES)]
        image = brush.draw(scenes.scene(seed, number), SIDE, style)
        rows.append(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1.0)
    return np.stack(rows)


def parts(seed: int, numbers: range, side: int) -> NDArray[np.float32]:
    """Return squares with an object in them, [B, 3, side, side]; the smaller, the more a drawing.

    To draw 128 pixels takes as long as to learn from 32.
    """
    share = SIDE // side
    drawings = range(numbers.start // share, (numbers.stop - 1) // share + 1)
    drawn = dict(zip(drawings, pixels(seed, drawings), strict=True))
    rows = []
    for number in numbers:
        picture, rng = drawn[number // share], draws.generator(seed, draws.TINY_PART, number)
        spots = scenes.scene(seed, number // share).spots
        spot = spots[int(rng.integers(len(spots)))]
        middle = np.array([spot.y, spot.x]) * SIDE + rng.uniform(-0.4, 0.4, 2) * side
        top, left = np.clip(np.round(middle - side / 2), 0, SIDE - side).astype(int)
        rows.append(picture[:, top : top + side, left : left + side])
    return np.stack(rows)


def train(vae: Any, seed: int, folder: Path) -> None:
    """Train all weights of `vae` in place; the states of the phases are kept in `folder`."""
    trained = dict(vae.parameters_and_names())
    begun = 0
    for number, (side, plan) in enumerate(PHASES):
        batch = partial(_batch, seed, number, begun)
        found = fit(Loss(vae), trained, batch, plan, folder / f"{side}")
        for name, value in found.items():
            trained[name].set_data(Tensor(value))
        begun += plan.steps


def _batch(seed: int, phase: int, begun: int, step: int) -> tuple[NDArray[Any], ...]:
    """Return pictures and noise of a step of a phase, before which `begun` steps were done."""
    side, first = PHASES[phase][0], (begun + step) * BATCH
    rng = draws.generator(seed, draws.TINY_VAE_NOISE, step, phase)
    noise = rng.standard_normal((BATCH, 4, side // 8, side // 8), np.float32)
    return parts(seed, range(first, first + BATCH), side), noise


def measure(vae: Any, seed: int, count: int = 256) -> tuple[float, dict[str, float]]:
    """Return the scaling factor, 1 / standard deviation of latents, and each style's PSNR in dB.

    The deviation is the one of all latents of flat drawings about 0, as the pipeline scales and
    does not shift (Rombach et al. 2022, appendix G). The drawings are none of the training's.
    """
    vae.set_train(False)
    squares: list[float] = []
    errors: dict[str, list[float]] = {style: [] for style in STYLES}
    encode, decode = _Encode(vae), _Decode(vae)
    for first in range(0, count, BATCH):
        given = pixels(seed + 1, range(first, first + BATCH))
        mean = encode(Tensor(given))[:, :4]
        made = np.clip(decode(mean).asnumpy(), -1.0, 1.0)
        wrong = np.mean(np.square((made - given) / 2.0), axis=(1, 2, 3))
        sizes = np.mean(np.square(mean.asnumpy()), axis=(1, 2, 3))
        for place, (error, size) in enumerate(zip(wrong, sizes, strict=True)):
            style = STYLES[(first + place) % len(STYLES)]
            errors[style].append(float(error))
            if style == "flat":
                squares.append(float(size))
    psnr = {style: -10.0 * float(np.log10(np.mean(rows))) for style, rows in errors.items()}
    return 1.0 / float(np.sqrt(np.mean(squares))), psnr


class _Encode(nn.Cell):  # type: ignore[misc]
    def __init__(self, vae: nn.Cell) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, x: Tensor) -> Tensor:
        return self.vae.encode(x)[0]


class _Decode(nn.Cell):  # type: ignore[misc]
    def __init__(self, vae: nn.Cell) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, x: Tensor) -> Tensor:
        return self.vae.decode(x)[0]


def build() -> Any:
    """Return an untrained VAE."""
    from mindone.diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)
