"""The small SDXL against prompts that it was never trained on, and broken ways of sampling it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

ms = pytest.importorskip("mindspore")

import prompted  # noqa: E402
from prompted import Seen, share  # noqa: E402

from jobs import pipelines, sampling, schedules  # noqa: E402
from jobs.tiny import MODEL  # noqa: E402

pytestmark = [pytest.mark.quality, pytest.mark.timeout(7200)]

FEWER = 100
"""Prompts where many ways are compared."""
OTHER = {"v_prediction": "epsilon", "epsilon": "v_prediction"}


@cache
def painter() -> Any:
    return prompted.painter()


def measured(of: Any, count: int, kind: str = "shape", **options: Any) -> Seen:
    wanted = prompted.unseen(kind, count)
    return prompted.judge(prompted.paint(of, prompted.prompts(wanted), **options), wanted)


@cache
def whole() -> Seen:
    return measured(painter(), FEWER)


def test_unseen_combinations_are_painted() -> None:
    found = measured(painter(), 500)
    prompted.report("unseen combinations", found)
    assert share(found["colour"]).value >= 0.95
    assert share(found["what"]).value >= 0.85
    assert share(found["place"]).value >= 0.85


@pytest.mark.parametrize("kind", ["group", "thing"])
def test_counts_and_things_are_reported(kind: str) -> None:
    found = measured(painter(), FEWER, kind)
    prompted.report(kind, found)
    assert share(found["colour"]).value >= 0.9


def test_every_scheduler_is_within_5_points_of_the_best() -> None:
    found = {}
    for name in schedules.CLASSES:
        seen = measured(painter(), FEWER, scheduler=name)
        prompted.report(name, seen)
        found[name] = prompted.adherence(seen).mean()
    assert min(found.values()) >= max(found.values()) - 0.05, found


class WrongTimes(sampling.Painter):
    def _predict(self, x: Any, moment: float, conditions: Any) -> Any:
        return super()._predict(x, min(999.0, moment + 50.0), conditions)


class OneEncoder(sampling.Painter):
    """Without the second encoder, whose pooled embedding is the conditioning's as well."""

    def _conditions(self, requests: Any) -> Any:
        embeds, pooled = super()._conditions(requests)
        half = embeds.shape[-1] // 2
        kept = embeds.asnumpy().copy()
        kept[..., half:] = 0.0
        return ms.Tensor(kept), ms.Tensor(0.0 * pooled.asnumpy())


def falls(of: Any) -> None:
    """A broken variant shows less of what it is told than the whole one, on the same noise."""
    bad = measured(of, FEWER)
    less, half = prompted.loss(whole(), bad)
    prompted.report("broken", bad, f"{100 * less:.1f} +- {100 * half:.1f} points less")
    assert less - half > 0


def test_the_prediction_type_flipped_is_seen() -> None:
    broken = prompted.painter()
    config = pipelines.config(MODEL, "scheduler")
    broken.prediction = OTHER[config["prediction_type"]]
    falls(broken)


def test_a_wrong_vae_scale_is_seen() -> None:
    broken = prompted.painter()
    broken.scaling *= 2
    falls(broken)


@pytest.mark.parametrize("kind", [WrongTimes, OneEncoder])
def test_wrong_time_steps_and_a_missing_encoder_are_seen(kind: Any) -> None:
    falls(prompted.painter(kind=kind))
