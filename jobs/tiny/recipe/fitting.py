"""Owns a plain training loop that resumes: for the parts that the suite's trainer leaves frozen.

Must not know what is trained. The optimiser is the trainer's own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray

from jobs import rates
from jobs.update import Options, Update

log = logging.getLogger("jobs.tiny.recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast something is trained."""

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-4
    average: float = 0.995
    """Decay of the moving average, which is the result."""
    save_every: int = 200


class _Step(nn.Cell):  # type: ignore[misc]
    """Loss, gradient and update in one graph."""

    def __init__(self, loss: nn.Cell, update: Update) -> None:
        super().__init__()
        self.loss, self.update = loss, update
        self.weights = update.groups()[0].weights
        self.value_and_grad = ms.value_and_grad(self.value, None, self.weights)

    def value(self, *inputs: Tensor) -> Tensor:
        return self.loss(*inputs)

    def construct(self, settings: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do a step; settings are the learning rate, the average's decay and the step's number."""
        value, gradients = self.value_and_grad(*inputs)
        lr, decay, number = settings[0], settings[1], settings[2]
        loss, norm, stops = self.update(value, gradients, lr, lr, decay, number, settings[3:5])
        return loss, norm, stops


def fit(
    loss: nn.Cell,
    trained: Mapping[str, Parameter],
    batch: Callable[[int], tuple[NDArray[Any], ...]],
    plan: Plan,
    folder: Path,
) -> dict[str, NDArray[np.float32]]:
    """Train until `plan.steps`, from the newest state in `folder` on; return the average.

    Args:
        loss: its construct takes what `batch` returns, and returns a scalar.
        trained: what is trained, by name.
        batch: step (from 0) -> arrays; a function of the step alone.
        plan: how long and how fast.
        folder: state.safetensors and curve.jsonl are kept there.
    """
    for parameter in trained.values():
        parameter.requires_grad = True
    options = Options(
        workers=1, weight_decay=plan.weight_decay, max_grad_norm=1.0, scaled=False, average=True
    )
    update = Update(trained, {}, options)
    step, state = _Step(loss, update), update.state()
    step.set_train(True)
    folder.mkdir(parents=True, exist_ok=True)
    done = _restore(folder, state)
    losses, began = [], time.monotonic()
    while done < plan.steps:
        rate = plan.learning_rate * rates.factor(
            "cosine", done, steps=plan.steps, warmup=plan.warmup
        )
        settings = [rate, rates.average_decay(plan.average, done), done + 1, 0.0, 0.0]
        found = step(Tensor(settings, ms.float32), *(Tensor(array) for array in batch(done)))
        losses.append(float(found[0].asnumpy()))
        done += 1
        if done % plan.save_every == 0 or done == plan.steps:
            seconds = (time.monotonic() - began) / len(losses)
            row = {"step": done, "loss": float(np.mean(losses)), "seconds_per_step": seconds}
            log.info("part=%s step=%d loss=%.5f seconds_per_step=%.3f", folder.name, *row.values())
            if not np.isfinite(row["loss"]):
                raise FloatingPointError(f"{folder.name}: the loss at step {done} is not finite")
            _save(folder, state, row)
            losses, began = [], time.monotonic()
    return {name: state[f"ema.{name}"].asnumpy() for name in trained}


def _save(folder: Path, state: Mapping[str, Parameter], row: dict[str, float]) -> None:
    from safetensors.numpy import save_file

    part = folder / "state.part"
    arrays = {name: np.ascontiguousarray(p.asnumpy()) for name, p in state.items()}
    save_file(arrays, part, {"done": str(row["step"])})
    part.replace(folder / "state.safetensors")
    with (folder / "curve.jsonl").open("a", encoding="utf-8") as curve:
        curve.write(json.dumps(row) + "\n")


def _restore(folder: Path, state: Mapping[str, Parameter]) -> int:
    """Set every Parameter to what was saved; return the number of steps behind it, or 0."""
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, "np") as opened:
        for name, parameter in state.items():
            # A single number comes back as an array of one.
            parameter.set_data(Tensor(opened.get_tensor(name).reshape(parameter.shape)))
        return int(opened.metadata()["done"])
