"""Learning rates and the average's decay against mindone's own schedules and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from jobs import rates
from jobs.specs import Schedule

STEPS, WARMUP = 200, 30


def factors(schedule: Schedule, cycles: int = 1, warmup: int = WARMUP) -> np.ndarray:
    given = {"steps": STEPS, "warmup": warmup, "cycles": cycles}
    return np.array([rates.factor(schedule, done, **given) for done in range(STEPS)])


@pytest.mark.parametrize("cycles", [1, 3])
def test_rates_are_those_of_mindone_but_for_a_warm_up_without_a_step_at_zero(cycles: int) -> None:
    theirs = pytest.importorskip("mindone.diffusers.optimization", reason="extra: jobs")
    known = {
        "constant": theirs.get_constant_schedule_with_warmup(1.0, WARMUP, STEPS),
        "linear": theirs.get_linear_schedule_with_warmup(1.0, WARMUP, STEPS),
        "cosine": theirs.get_cosine_schedule_with_warmup(1.0, WARMUP, STEPS),
        "cosine-restarts": theirs.get_cosine_with_hard_restarts_schedule_with_warmup(
            1.0, WARMUP, STEPS, cycles
        ),
    }
    for schedule, expected in known.items():
        found = factors(schedule, cycles)
        assert np.allclose(found[WARMUP:], expected[WARMUP:], atol=1e-12), schedule
        assert np.allclose(found[: WARMUP - 1], expected[1:WARMUP], atol=1e-12), schedule
        assert found[WARMUP - 1] == 1


def test_no_step_is_done_at_a_rate_of_zero() -> None:
    for schedule in ("constant", "linear", "cosine", "cosine-restarts"):
        for warmup in (0, WARMUP, STEPS - 1):
            found = factors(schedule, 2, warmup)
            assert found.min() > 0
            assert found.max() == 1
    assert rates.factor("linear", 0, steps=1, warmup=0) == 1


def test_the_average_forgets_the_first_weights_and_then_keeps_its_decay() -> None:
    assert rates.average_decay(0.9999, 0) == 0.1
    assert rates.average_decay(0.9999, 10**6) == 0.9999
    left = np.prod([rates.average_decay(0.9999, done) for done in range(100)])
    assert left < 1e-12
