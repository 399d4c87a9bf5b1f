"""Samplers as tables: the latents of mindone's own schedulers, stepped as its pipeline does."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from scipy import integrate  # noqa: E402

from jobs import schedules  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.errors import BadSpec  # noqa: E402
from jobs.inferspec import Scheduler  # noqa: E402
from jobs.tiny.recipe.pipeline import SDXL_SCHEDULER  # noqa: E402
from launcher import options  # noqa: E402

SHAPE = (2, 4, 4, 4)


pytestmark = pytest.mark.usefixtures("on_cpu")


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


WEIGHTS = 0.1 * np.random.default_rng(99).standard_normal((64, 64)).astype(np.float32)


def predict(x: np.ndarray, moment: float) -> np.ndarray:
    """Return what a model that is not linear would say."""
    said = np.tanh(x.reshape(2, 64) @ WEIGHTS + moment / 1000).reshape(x.shape)
    return np.asarray(said, np.float32)


class Fresh:
    """A generator whose draws are known by their number."""

    def __init__(self) -> None:
        self.count = 0

    def standard_normal(self, *_: Any, **__: Any) -> np.ndarray:
        self.count += 1
        return drawn(self.count)


def stepped(scheduler: Any, steps: int) -> np.ndarray:
    """Return the last latents of mindone's scheduler, as its SDXL pipeline steps it."""
    import inspect

    more = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        more["generator"] = Fresh()
    with eager():
        scheduler.set_timesteps(steps)
        x = ms.Tensor(drawn(0)) * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            given = scheduler.scale_model_input(x, time).asnumpy()
            x = scheduler.step(ms.Tensor(predict(given, float(time))), time, x, **more)[0]
    return np.asarray(x.asnumpy())


@pytest.mark.parametrize("name", sorted(schedules.CLASSES))
@pytest.mark.parametrize("change", [{}, {"prediction_type": "v_prediction"}, {"steps": 1}])
def test_a_table_steps_as_mindones_scheduler_does(name: str, change: dict[str, Any]) -> None:
    steps = change.get("steps", 7)
    found = {**SDXL_SCHEDULER, **{key: v for key, v in change.items() if key != "steps"}}
    table = schedules.read_off(schedules.configured(name, found), steps)
    ours = table.run(drawn(0), predict, lambda step: drawn(step + 1))
    theirs = stepped(schedules.configured(name, found), steps)
    assert np.isfinite(theirs).all()
    assert np.abs(theirs).max() > 0.1
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max() + 1e-5
    draws = sum(step.noise != 0 for step in table.steps)
    assert draws == (steps - 1 if name == "EulerAncestral" else 0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sorted(schedules.CLASSES))
def test_the_unet_is_told_the_time_of_the_noise_that_it_is_given(
    name: str, prediction: str
) -> None:
    """Exactly, since a time that is off by one only looks like a slightly worse model.

    Where all data is one picture, the right prediction is known, and every sampler here is exact.
    Coordinate 0 is that picture; each noise has a coordinate of its own.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # SDXL's
    signal = np.sqrt(np.cumprod(1.0 - betas))
    clean, *noises = np.eye(40, dtype=np.float32)
    told = []

    def right(x: np.ndarray, moment: float) -> np.ndarray:
        held = signal[int(moment)]
        spread = np.sqrt(1 - held**2)
        told.append(moment)
        assert x[0] == pytest.approx(held, abs=2e-5), moment
        assert np.linalg.norm(x[1:]) == pytest.approx(spread, abs=2e-5), moment
        noise = (x - held * clean) / spread
        return noise if prediction == "epsilon" else held * noise - spread * clean

    config = {**SDXL_SCHEDULER, "prediction_type": prediction}
    table = schedules.table(name, config, 30)
    held = signal[int(table.steps[0].time)]
    shown = held * clean + np.sqrt(1 - held**2) * noises[0]
    first = shown / (table.sigma * table.steps[0].scale)
    last = table.run(first.astype(np.float32), right, lambda step: noises[step + 1])
    assert last[0] == pytest.approx(1, abs=1e-3)
    assert told == sorted(set(told), reverse=True)
    assert len(told) == 30
    assert (told[0] > 950, told[-1] < 40) == (True, True)


def test_the_models_own_scheduler_is_the_default() -> None:
    assert type(schedules.configured(None, SDXL_SCHEDULER)).__name__ == "EulerDiscreteScheduler"
    bare = {"_class_name": "DDIMScheduler"}
    assert schedules.configured(None, bare).config["clip_sample"] is False


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({**SDXL_SCHEDULER, "clip_sample": True}, "clip_sample is set"),
        ({**SDXL_SCHEDULER, "_class_name": "DreamScheduler"}, "mindone has none"),
        ({**SDXL_SCHEDULER, "_class_name": "AutoencoderKL"}, "mindone has none"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(found: dict[str, Any], told: str) -> None:
    name = "DDIM" if "clip_sample" in told else None
    with pytest.raises(BadSpec, match=told):
        schedules.configured(name, found)


def test_lms_coefficients_are_the_integrals_of_its_polynomials() -> None:
    sigmas = np.array([14.6, 9.1, 6.0, 4.2, 2.5, 0.9, 0.0])
    for t in range(6):
        order = min(t + 1, 4)
        for current in range(order):
            others = [k for k in range(order) if k != current]

            def basis(s: float, t: int = t, current: int = current, others=others) -> float:
                return float(
                    np.prod(
                        [
                            (s - sigmas[t - k]) / (sigmas[t - current] - sigmas[t - k])
                            for k in others
                        ]
                    )
                )

            area = integrate.quad(basis, sigmas[t], sigmas[t + 1])[0]
            assert schedules.lms_coefficient(sigmas, order, t, current) == pytest.approx(area)


def test_one_list_of_samplers() -> None:
    flag = get_args(get_args(options.Scheduler)[0])[0]
    assert list(schedules.CLASSES) == list(get_args(Scheduler)) == list(get_args(flag))


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({"timestep_spacing": "x"}, 4, "does not fit"),
        ({"num_train_timesteps": 10}, 20, "does not fit"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4, "v_prediction"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    on_cpu: None, changes: dict[str, object], steps: int, words: str
) -> None:
    with pytest.raises(BadSpec, match=words):
        schedules.table("DDIM", SDXL_SCHEDULER | changes, steps)
