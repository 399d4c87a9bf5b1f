"""What a run of pictures says of itself at its end."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import verdict
from jobs.errors import JobError


def summary(start: float, compile_s: float, seconds: float, **split: float) -> dict[str, Any]:
    return {
        "painted": 6, "failures": [], "asked": 12, "before": 0, "cut": 0, "start_s": start,
        "compile_s": compile_s, "seconds": seconds, "split": split, "steps": {"LMS": (30.0, 60)},
    }  # fmt: skip


def test_the_parts_of_the_time_are_the_whole() -> None:
    workers = [
        summary(10.0, 5.0, 40.0, text=1.0, denoise=30.0, decode=6.0, encode=9.0),
        summary(12.0, 4.0, 34.0, text=2.0, denoise=26.0, decode=5.0, encode=8.0),
    ]
    found: dict[str, Any] = verdict.painted("r", workers)
    assert found["split_s"] == {
        "start": 11.0, "compile": 4.5, "text": 1.5, "denoise": 28.0, "decode": 5.5, "encode": 8.5,
        "waiting": 4.5, "painting": 39.5,
    }  # fmt: skip
    assert found["seconds"] == 55
    after = ("start", "compile", "text", "denoise", "decode", "waiting")
    assert sum(found["split_s"][name] for name in after) == found["seconds"]
    assert found["img_s"] == pytest.approx(12 / 40, abs=1e-3)
    assert found["img_s_overall"] == pytest.approx(12 / 55, abs=1e-3)
    assert found["s_per_step"] == {"LMS": 0.5}


def test_a_run_that_was_done_already_has_no_pace() -> None:
    worker = {**summary(10.0, 5.0, 0.0, encode=0.0), "painted": 0, "before": 12}
    found: dict[str, Any] = verdict.painted("r", [worker])
    assert (found["pictures"], found["img_s"], found["img_s_overall"]) == (12, None, None)
    assert found["split_s"]["denoise"] == found["split_s"]["waiting"] == 0


def test_pictures_that_are_nowhere_are_no_success() -> None:
    with pytest.raises(JobError, match="1 were there, 6 were painted, 0 failed, and 12 were asked"):
        verdict.painted("r", [{**summary(10.0, 5.0, 40.0), "before": 1}])
