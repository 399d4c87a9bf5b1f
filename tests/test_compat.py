"""The start of a worker: who belongs to a group, and on which device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from mindspore import communication  # noqa: E402

from jobs import compat  # noqa: E402
from jobs.environment import Environment, Worker  # noqa: E402


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Be rank 3 of 4, the second worker of its node; return what is asked of the framework."""
    calls: list[str] = []
    for name in compat.GROUP:
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("MS_WORKER_NUM", "4")
    monkeypatch.setattr(compat, "die_with_supervisor", lambda: None)
    monkeypatch.setattr(communication, "init", lambda: calls.append("init"))
    monkeypatch.setattr(
        ms, "set_device", lambda kind, device_id=None: calls.append(f"{kind} {device_id}")
    )
    return calls


def environment(device: str) -> Environment:
    return Environment(
        spec="", run="r", store="s", uid="u", work=Path(), device=device, workers=2, nodes=2
    )


@pytest.mark.parametrize(("device", "told"), [("CPU", "CPU None"), ("Ascend", "Ascend 1")])
def test_workers_without_a_group_meet_nobody_and_take_the_device_of_their_place(
    met: list[str], device: str, told: str
) -> None:
    assert compat.start(environment(device), group=False) == Worker(3, 4)
    assert met == [told]
    assert not set(compat.GROUP) & os.environ.keys()


def test_workers_of_a_group_meet_and_are_given_their_devices(met: list[str]) -> None:
    assert compat.start(environment("Ascend"), group=True) == Worker(3, 4)
    assert met == ["Ascend None", "init"]
    assert os.environ["MS_ROLE"] == "MS_WORKER"


def test_without_a_group_the_scheduler_has_nothing_to_do(
    met: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with pytest.raises(SystemExit) as ended:
        compat.start(environment("CPU"), group=False)
    assert (ended.value.code, met) == (0, [])
