"""The maths against closed forms and the definitions in the papers."""

from __future__ import annotations

import numpy as np
import pytest

from jobs import diffusion
from jobs.errors import BadSpec

SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
}


def test_signal_levels_of_sdxl() -> None:
    levels = diffusion.alpha_bars(SDXL)
    assert levels.shape == (1000,)
    assert np.all(np.diff(levels) < 0)
    assert levels[0] == pytest.approx(1 - 0.00085, abs=1e-6)
    # Terminal signal-to-noise of SDXL's schedule: sqrt(alpha_bar) = 0.068 (arXiv 2305.08891, 3.1).
    assert np.sqrt(levels[-1]) == pytest.approx(0.068265, abs=1e-5)
    # The largest sigma of the same schedule, as its samplers print it: 14.6146.
    assert np.sqrt((1 - levels[-1]) / levels[-1]) == pytest.approx(14.6146, abs=1e-3)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_signal_levels_are_those_of_mindones_schedulers(kind: str, rescaled: bool) -> None:
    diffusers = pytest.importorskip("mindone.diffusers", reason="mindone is not installed")
    found = {**SDXL, "beta_schedule": kind, "rescale_betas_zero_snr": rescaled}
    levels = diffusion.alpha_bars(found)
    assert (levels[-1] == 0) == rescaled
    for name in ("DDPMScheduler", "DDIMScheduler"):
        theirs = getattr(diffusers, name).from_config(found).alphas_cumprod.asnumpy()
        assert np.allclose(levels, theirs, rtol=1e-4, atol=1e-7), name


def test_without_any_signal_the_maths_stays_finite() -> None:
    clean, noise = np.random.default_rng(2).standard_normal((2, 4, 8, 8)).astype(np.float32)
    assert np.array_equal(diffusion.noisy(clean, noise, 0.0), noise)
    assert np.array_equal(diffusion.target(clean, noise, 0.0, "v_prediction"), -clean)
    assert diffusion.loss_weight(0.0, 5.0, "epsilon") == 1
    assert diffusion.loss_weight(0.0, 5.0, "v_prediction") == 0


def test_unknown_schedules_and_predictions_are_refused() -> None:
    with pytest.raises(BadSpec, match="squaredcos"):
        diffusion.alpha_bars({**SDXL, "beta_schedule": "squaredcos_cap_v2"})
    with pytest.raises(BadSpec, match="trained_betas"):
        diffusion.alpha_bars({**SDXL, "trained_betas": [0.1, 0.2]})
    with pytest.raises(BadSpec, match="sample"):
        diffusion.target(np.zeros(1), np.zeros(1), 0.5, "sample")  # type: ignore[arg-type]


def test_clean_and_noise_come_back_from_noisy_and_v() -> None:
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    for level in (0.999, 0.5, 0.0047):
        noisy = diffusion.noisy(clean, noise, level)
        v = diffusion.target(clean, noise, level, "v_prediction")
        assert np.allclose(np.sqrt(level) * noisy - np.sqrt(1 - level) * v, clean, atol=1e-5)
        assert np.allclose(np.sqrt(1 - level) * noisy + np.sqrt(level) * v, noise, atol=1e-5)


def test_posterior_is_sampled_and_scaled() -> None:
    moments = np.concatenate([np.full((4, 2, 2), 3.0), np.full((4, 2, 2), np.log(4.0))]).astype(
        np.float32
    )
    noise = np.full((4, 2, 2), 0.5, np.float32)
    assert np.allclose(diffusion.latents(moments, noise, 0.13025), (3.0 + 2.0 * 0.5) * 0.13025)
    wild = np.concatenate([np.zeros((4, 1, 1)), np.full((4, 1, 1), 1e9)]).astype(np.float32)
    assert np.isfinite(diffusion.latents(wild, np.ones((4, 1, 1), np.float32), 1.0)).all()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_the_error_of_the_clean_latents(gamma: float) -> None:
    """By its definition: weight times error of what is predicted is min(SNR, gamma) times the
    error of the latents that the prediction means (arXiv 2303.09556, section 3.4)."""
    rng = np.random.default_rng(1)
    clean, noise, wrong = rng.standard_normal((3, 4, 8, 8))
    for level in (0.999, 0.9, 0.5, 0.1, 0.0047):
        signal, spread = np.sqrt(level), np.sqrt(1 - level)
        seen = signal * clean + spread * noise
        meant = {
            "epsilon": lambda e: (seen - spread * e) / signal,  # noqa: B023
            "v_prediction": lambda v: signal * seen - spread * v,  # noqa: B023
        }
        for kind, to_clean in meant.items():
            right = diffusion.target(clean, noise, level, kind)
            weight = diffusion.loss_weight(level, gamma, kind)
            error = np.mean((to_clean(right + wrong) - clean) ** 2)
            expected = min(level / (1 - level), gamma) * error
            assert weight * np.mean(wrong**2) == pytest.approx(expected, rel=1e-4)
            assert diffusion.loss_weight(level, None, kind) == 1
