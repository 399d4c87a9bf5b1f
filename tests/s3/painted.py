"""The real supervisor and the real inference worker, with a painter of numpy: to be killed often.

`python painted.py` is the supervisor, `group` stands for msrun with two workers, `worker` is one.
A picture is its own first noise, so that each one is known by seed, line and image.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

WORKERS = 2
SECONDS_PER_BATCH = 0.05


class Painter:
    """What jobs.infer asks of one."""

    factor = 8

    def __init__(self, *_: Any, batch: int, **__: Any) -> None:
        self.batch = batch
        self.seconds: dict[str, float] = defaultdict(float)
        self.step_seconds: dict[str, tuple[float, int]] = {}

    def compile(self, _sizes: Any, *, texts: bool) -> None:
        time.sleep(0.1)

    def table(self, scheduler: str | None, _steps: int) -> SimpleNamespace:
        return SimpleNamespace(name=scheduler or "EulerDiscrete")

    def cuts(self, _text: str) -> bool:
        return False

    def paint(self, slots: Any, **_: Any) -> np.ndarray:
        from jobs.draws import picture_noise

        assert len(slots) == self.batch
        time.sleep(SECONDS_PER_BATCH)
        shape = (3, 16, 16)
        return np.stack(
            [
                np.zeros(shape, np.float32) if r is None
                else picture_noise(r.seed, r.line, r.image, shape)
                for r in slots
            ]
        )  # fmt: skip


def work() -> int:
    from jobs.msrun import die_with_supervisor

    die_with_supervisor()
    for name in ("sampling", "model", "lora", "graphs"):
        sys.modules[f"jobs.{name}"] = module = ModuleType(f"jobs.{name}")
        setattr(sys.modules["jobs"], name, module)
    from jobs import graphs, model, sampling

    sampling.Painter = Painter  # type: ignore[misc, assignment]
    sampling.Floats = np.ndarray  # type: ignore[misc]
    model.TOKENS = 77
    model.dtype = model.locate = lambda *_, **__: None  # type: ignore[assignment]
    model.config = lambda *_: {}  # type: ignore[assignment]
    graphs.open_cache = lambda *_: SimpleNamespace(publish=lambda: None)  # type: ignore[assignment]
    from jobs import specs
    from jobs.environment import Environment, Worker, log_to_stdout
    from jobs.errors import JobError
    from jobs.infer import run
    from jobs.outbox import Outbox
    from jobs.worker import leave

    log_to_stdout()
    env, worker = Environment.read(), Worker.read()
    try:
        spec = specs.parse_json(env.spec)
        assert spec.kind == "infer"
        run(env, spec, worker)
    except JobError as error:
        return leave(env, worker, error)
    Outbox(env.work).end(worker.rank)
    return 0


def group() -> int:
    """Start the workers and wait; the first one that fails ends all, as msrun does."""
    from jobs.msrun import die_with_parent

    die_with_parent()
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "worker"],
            env={**os.environ, "RANK_ID": str(rank), "MS_WORKER_NUM": str(WORKERS)},
        )
        for rank in range(WORKERS)
    ]
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers):
            for worker in workers:
                worker.kill()
        time.sleep(0.02)
    return max(abs(worker.returncode) for worker in workers) and 1


def supervise() -> int:
    from jobs import msrun, runtime

    msrun.command = lambda *_: [sys.executable, __file__, "group"]
    return runtime.main()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    os.chdir(os.environ["JOB_WORK"])
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    raise SystemExit({"": supervise, "group": group, "worker": work}[role]())
