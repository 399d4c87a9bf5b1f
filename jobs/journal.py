"""Owns what a training run says of itself: metrics rows, log lines, its result, where time went.

Must not train or decide anything. The pages of `launcher report` read the rows: every number in one
becomes a curve, and `<phase>_s` is the time of a phase since the row before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import numpy as np

from jobs import layout
from jobs.attempt import OWNER
from jobs.environment import Environment, Worker
from jobs.outbox import Outbox
from jobs.specs import TrainSpec

log = logging.getLogger("jobs.journal")

PHASES = ("compile", "data", "step", "checkpoint", "validation")


@dataclass
class Clock:
    """Seconds by phase: since the last row, and of the whole run, earlier attempts included."""

    row: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    run: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def add(self, phase: str, seconds: float) -> None:
        """Count time."""
        self.row[phase] += seconds
        self.run[phase] += seconds

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began)

    def minutes(self) -> float:
        """Return the run's training time."""
        return sum(self.run.values()) / 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a row tells of a step."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    loss_scale: float


class Journal:
    """The records of one attempt: each worker keeps the time, rank 0 writes."""

    def __init__(self, env: Environment, spec: TrainSpec, worker: Worker) -> None:
        self.outbox, self.spec, self.worker = Outbox(env.work), spec, worker
        self.clock = Clock()
        self.seconds: list[float] = []
        """Of each step of this attempt, data included."""
        self.forked: tuple[str, ...] = ()
        self.attempt = _attempt(env)
        for row in _rows(self.outbox):
            for phase in PHASES:
                seconds = row.get(f"{phase}_s")
                self.clock.run[phase] += seconds if isinstance(seconds, float | int) else 0.0
        self.compiled_before = self.clock.run["compile"]

    def tell(self, told: Row) -> None:
        """Write a metrics row and a log line."""
        speed = self.speed()
        row: dict[str, object] = {
            **asdict(told),
            "steps": self.spec.steps,
            "attempt": self.attempt,
            **speed,
            **{f"{phase}_s": round(value, 4) for phase, value in self.clock.row.items()},
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if self.forked:
            row["forked"], self.forked = list(self.forked), ()
        self.clock.row = dict.fromkeys(PHASES, 0.0)
        self.outbox.append(layout.METRICS, row)
        pace = f" ms_per_step={speed['ms_per_step']} img_s={speed['img_s']}"
        numbers = (told.step, self.spec.steps, told.loss, told.grad_norm, told.lr)
        more = pace if speed["img_s"] else ""
        log.info("step=%d/%d loss=%.6f grad_norm=%.4f lr=%.3g%s", *numbers, more)

    def tell_fork(self, done: int, changed: Sequence[str]) -> None:
        """Note that the run goes on from step `done` with other values: the next row says it."""
        log.warning("forked=%d changed: %s", done, "; ".join(changed))
        self.forked = tuple(changed)

    def is_due(self, done: int) -> bool:
        """Say whether a row is, beside those of checkpoints: every `log_every` steps and at 1."""
        return done == 1 or done % self.spec.log_every == 0

    def speed(self) -> dict[str, float | None]:
        """Return milliseconds a step and pictures a second, over all workers; none before step 2.

        Of the median of the steps so far without the first, which compiles.
        """
        if len(self.seconds) < 2:
            return {"ms_per_step": None, "img_s": None}
        seconds = float(np.median(self.seconds[1:]))
        rate = self.global_batch() / seconds
        return {"ms_per_step": round(1000 * seconds, 2), "img_s": round(rate, 3)}

    def global_batch(self) -> int:
        """Return the pictures of a step."""
        return self.spec.batch_size * self.worker.world * self.spec.accumulate

    def compile_s(self) -> float:
        """Return the seconds that this attempt took to its first step's end."""
        return self.clock.run["compile"] - self.compiled_before

    def result(self, done: int, loss: float | None) -> dict[str, object]:
        """Return the result in the columns of the reference's table, and where the time went.

        compile_s and the paces are this attempt's; the other times are of all attempts, without
        what a kill has taken with it.
        """
        spent = {k: round(v, 2) for k, v in self.clock.run.items() if k != "compile"}
        return {
            "kind": "train",
            "method": self.spec.method,
            "precision": self.spec.precision,
            "resolution": self.spec.resolution,
            "npus": self.worker.world,
            "global_batch": self.global_batch(),
            "steps": done,
            "ended": "steps" if done == self.spec.steps else "max_minutes",
            "compile_s": round(self.compile_s(), 1),
            "compile_all_s": round(self.clock.run["compile"], 1),
            **self.speed(),
            "loss": loss,
            **{f"{phase}_s": value for phase, value in spent.items()},
            "checkpoint": f"{layout.CHECKPOINTS}/{layout.step_name(done)}",
        }


def _attempt(env: Environment) -> int | None:
    """Return the number of this attempt, which the supervisor leaves in the work directory."""
    try:
        return int(json.loads((env.work / OWNER).read_bytes())["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rows(outbox: Outbox) -> list[dict[str, object]]:
    """Return the rows of the attempts before, up to the step this one goes on from."""
    try:
        lines = (outbox.root / layout.METRICS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
