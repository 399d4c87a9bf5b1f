"""The small SDXL against prompts that it was never trained on, and broken ways of sampling it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

ms = pytest.importorskip("mindspore")

import prompted  # noqa: E402
from prompted import Share  # noqa: E402

from jobs import sampling, schedules  # noqa: E402

pytestmark = [pytest.mark.quality, pytest.mark.timeout(7200)]

FEWER = 150
"""Prompts where many ways are compared."""


@cache
def folder() -> Path:
    return prompted.folder()


@cache
def painter() -> Any:
    return prompted.painter(folder())


def measured(of: Any, count: int, kind: str = "shape", **options: Any) -> dict[str, Share]:
    wanted = prompted.unseen(kind, count)
    return prompted.judge(prompted.paint(of, prompted.prompts(wanted), **options), wanted)


@cache
def whole() -> dict[str, Share]:
    return measured(painter(), FEWER)


def total(shares: dict[str, Share]) -> float:
    return sum(shares[name].value for name in ("colour", "what", "place")) / 3


def test_unseen_combinations_are_painted() -> None:
    found = measured(painter(), 500)
    prompted.told("unseen combinations", found)
    assert found["colour"].value >= 0.95
    assert found["what"].value >= 0.85
    assert found["place"].value >= 0.85


@pytest.mark.parametrize("kind", ["group", "thing"])
def test_counts_and_things_are_reported(kind: str) -> None:
    found = measured(painter(), FEWER, kind)
    prompted.told(kind, found)
    assert found["colour"].value > 0.5


def test_every_scheduler_is_within_5_points_of_the_best() -> None:
    found = {}
    for name in schedules.CLASSES:
        shares = measured(painter(), FEWER, scheduler=name)
        prompted.told(name, shares)
        found[name] = total(shares)
    assert min(found.values()) >= max(found.values()) - 0.05, found


class WrongTimes(sampling.Painter):
    def _predict(self, x: Any, moment: float, conditions: Any) -> Any:
        return super()._predict(x, min(999.0, moment + 50.0), conditions)


class OneEncoder(sampling.Painter):
    def _conditions(self, requests: Any) -> Any:
        embeds, pooled = super()._conditions(requests)
        half = embeds.shape[-1] // 2
        kept = embeds.asnumpy()
        kept[..., half:] = 0.0
        return ms.Tensor(kept), ms.Tensor(0.0 * pooled.asnumpy())


def falls(of: Any) -> None:
    """A broken variant's interval lies below the whole model's value, for one look at least."""
    good, bad = whole(), measured(of, FEWER)
    prompted.told("broken", bad)
    assert any(bad[name].interval[1] < good[name].interval[0] for name in good), bad


def test_the_prediction_type_flipped_is_seen() -> None:
    broken = prompted.painter(folder())
    broken.prediction = "epsilon"
    falls(broken)


def test_a_wrong_vae_scale_is_seen() -> None:
    broken = prompted.painter(folder())
    broken.scaling = 0.13025
    falls(broken)


@pytest.mark.parametrize("kind", [WrongTimes, OneEncoder])
def test_wrong_time_steps_and_a_missing_encoder_are_seen(kind: Any) -> None:
    falls(prompted.painter(folder(), kind))
