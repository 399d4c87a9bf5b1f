"""The maths of training: arrays in, arrays out. Must not draw random numbers or do I/O.

B samples, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.errors import BadSpec

Floats = NDArray[np.float32]


def _fp32(array: NDArray[Any]) -> Floats:
    return np.asarray(array, np.float32)


def alpha_bars(scheduler: Mapping[str, Any]) -> Floats:
    """Return the cumulative signal levels [T] of a scheduler's configuration, fp32.

    Raises:
        BadSpec: a noise schedule other than SDXL's kind, or one that is damaged.

    Source: Ho et al. 2020, arXiv 2006.11239, equation 4; `scaled_linear` is linear in sqrt(beta)
    (Rombach et al. 2022, arXiv 2112.10752, released code). With `rescale_betas_zero_snr` the last
    level is 0: Lin et al. 2023, arXiv 2305.08891, algorithm 1.
    """
    if scheduler.get("trained_betas") is not None:
        raise BadSpec(
            "scheduler: trained_betas is set; only SDXL's kinds of beta_schedule are known"
        )
    try:
        start, end = float(scheduler["beta_start"]), float(scheduler["beta_end"])
        count, kind = int(scheduler["num_train_timesteps"]), scheduler["beta_schedule"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadSpec(f"scheduler: scheduler_config.json is damaged ({error!r})") from error
    if not 0 < start < 1 or not 0 < end < 1 or count < 2:
        raise BadSpec(
            f"scheduler: {count} steps of betas from {start:g} to {end:g} are no noise schedule"
        )
    if kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, count, dtype=np.float64) ** 2
    elif kind == "linear":
        betas = np.linspace(start, end, count, dtype=np.float64)
    else:
        raise BadSpec(f"scheduler: beta_schedule {kind!r} is neither scaled_linear nor linear")
    levels = np.cumprod(1.0 - betas)
    if scheduler.get("rescale_betas_zero_snr"):
        roots = np.sqrt(levels)  # signal, linear in which the last is moved to 0
        levels = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return _fp32(levels)


def latents(moments: Floats, noise: Floats, scaling_factor: float) -> Floats:
    """Return latents drawn from the VAE's posterior, scaled for the UNet.

    Args:
        moments: mean and log variance, [2C, h, w].
        noise: standard normal, [C, h, w].

    Source: Kingma & Welling 2014, arXiv 1312.6114, section 2.4; log variance is clipped to
    [-30, 20] as in the VAE's own distribution.
    """
    mean, log_variance = np.split(moments, 2, axis=0)
    deviation = np.exp(0.5 * np.clip(log_variance, -30.0, 20.0))
    return _fp32((mean + deviation * noise) * np.float32(scaling_factor))


def noisy(clean: Floats, noise: Floats, alpha_bar: float) -> Floats:
    """Return clean latents [C, h, w] at signal level `alpha_bar` (arXiv 2006.11239, eq. 4)."""
    return _fp32(np.sqrt(alpha_bar) * clean + np.sqrt(1.0 - alpha_bar) * noise)


def target(clean: Floats, noise: Floats, alpha_bar: float, prediction: str) -> Floats:
    """Return what the UNet should predict, [C, h, w].

    Raises:
        BadSpec: neither `epsilon` nor `v_prediction`.

    Source of v: Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return _fp32(np.sqrt(alpha_bar) * noise - np.sqrt(1.0 - alpha_bar) * clean)
    raise BadSpec(f"scheduler: prediction_type {prediction!r} is neither epsilon nor v_prediction")


def loss_weight(alpha_bar: float, gamma: float | None, prediction: str) -> float:
    """Return the weight of a sample's squared error: 1, or min-SNR's where there is a `gamma`.

    min(SNR, gamma) is the weight of the error of the clean latents; what is predicted is the
    noise, whose error is SNR times that, or v, whose error is SNR + 1 times that.

    Source: Hang et al. 2023, arXiv 2303.09556, section 3.4; SNR = alpha_bar / (1 - alpha_bar).
    """
    if gamma is None:
        return 1.0
    snr = alpha_bar / (1.0 - alpha_bar)
    if prediction == "epsilon" and snr <= gamma:
        return 1.0  # also in the limit of no signal at all
    return min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1.0)
