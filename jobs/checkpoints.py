"""Owns a checkpoint on disk: the whole loop state, and the LoRA as diffusers reads it.

    state.safetensors   what is trained (fp32), both Adam moments, its average, the loss scale
    state.json          the step, and the spec that the state belongs to
    pytorch_lora_weights.safetensors   LoRA methods only

Must not know the store: a checkpoint is handed over through the outbox.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jobs import layout
from jobs.errors import BadData, BadSpec
from jobs.lora import diffusers_weights
from jobs.specs import TrainSpec
from jobs.step import TrainStep

STATE, LOOP = "state.safetensors", "state.json"
FREE = {
    "kind", "model", "model_config_from", "vae", "data", "save_every", "keep_last", "keep_every",
    "log_every", "validation_prompts", "validate_every", "validation_steps",
    "validation_guidance", "max_minutes", "fork",
}  # fmt: skip
"""Keys that change no number of the state; model, VAE and data, since an address becomes the path
of this node's copy. Whoever submits compares those."""


def save(folder: Path, spec: TrainSpec, step: TrainStep, done: int, *, samples: str = "") -> None:
    """Write the state after `done` steps into an empty folder; `samples` as Encoded has them."""
    arrays = {name: p.asnumpy() for name, p in step.state().items()}
    # PyTorch's readers refuse files that do not say `pt`.
    save_file(arrays, folder / STATE, {"format": "pt"})
    loop = {"step": done, "spec": _decisive(spec), "samples": samples}
    (folder / LOOP).write_text(json.dumps(loop, indent=1) + "\n", encoding="utf-8")
    if spec.method != "vanilla":
        weights = diffusers_weights(step.weights(), spec.lora_alpha / spec.lora_rank)
        save_file(weights, folder / layout.LORA_FILE, {"format": "pt"})


def restore(folder: Path, spec: TrainSpec, step: TrainStep) -> tuple[int, list[str]]:
    """Set the state from a folder; return the number of steps done, and what a fork changes.

    Raises:
        BadSpec: the state is of another spec, whose differing keys are named, or of another model.
        BadData: the folder holds no state.
    """
    import mindspore as ms

    loop, arrays = _loop(folder), _state(folder)
    # Version 0.1.0 wrote the method and no spec.
    before = loop.get("spec") or {**_decisive(spec), "method": loop["method"]}
    changed = differences(before, spec)
    told = f"checkpoint {folder.name}: was made with other values: {'; '.join(changed)}"
    if changed and not spec.fork:
        raise BadSpec(f"{told}; repeat its values, use a new run name, or --fork it")
    if int(loop["step"]) > spec.steps:
        raise BadSpec(
            f"checkpoint {folder.name}: {loop['step']} steps are done, more than steps "
            f"{spec.steps}; raise steps, or use a new run name"
        )
    parameters = step.state()
    if set(parameters) != set(arrays) or any(
        tuple(parameters[name].shape) != array.shape for name, array in arrays.items()
    ):
        why = f"{told}, and its state does not fit them" if changed else (
            f"checkpoint {folder.name}: of another model"
        )  # fmt: skip
        raise BadSpec(f"{why}; use a new run name")
    for name, array in arrays.items():
        # A copy that keeps the shape: another shape, of a scalar too, would be another graph.
        parameters[name].set_data(ms.Tensor(np.array(array)))
    return int(loop["step"]), changed


def other_sample(folder: Path, samples: str, digits: int) -> int | None:
    """Return the number of the first sample that is not what it was, or None.

    Args:
        folder: of a checkpoint; one of before version 0.2.0 tells nothing of its samples.
        samples: of now, `digits` characters each.
        digits: see samples.
    """
    before = str(_loop(folder).get("samples", "")) or samples
    for at in range(0, max(len(before), len(samples)), digits):
        if before[at : at + digits] != samples[at : at + digits]:
            return at // digits
    return None


def _loop(folder: Path) -> dict[str, Any]:
    with _told(folder):
        found: dict[str, Any] = json.loads((folder / LOOP).read_text(encoding="utf-8"))
        if not isinstance(found.get("spec", {}), dict) or int(found["step"]) < 1:
            raise ValueError("no step and spec in it")
    return found


def _state(folder: Path) -> dict[str, NDArray[Any]]:
    with _told(folder):
        found: dict[str, NDArray[Any]] = load_file(folder / STATE)
    return found


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise BadData(f"checkpoint {folder.name}: holds no state of a run ({error})") from error


def differences(before: Mapping[str, object], spec: TrainSpec) -> list[str]:
    """Return the decisive keys whose values differ from those of a checkpoint, with both values.

    A key that is newer than the checkpoint had its default. The number of steps may change while
    the learning rate does not go by it.
    """
    before, now = {**_decisive(TrainSpec()), **before}, _decisive(spec)
    free = {"steps"} if spec.lr_schedule == "constant" else set()
    return [
        f"{key} was {json.dumps(before.get(key)):.60}, not {json.dumps(now.get(key)):.60}"
        for key in sorted((before.keys() | now.keys()) - free)
        if before.get(key) != now.get(key)
    ]


def _decisive(spec: TrainSpec) -> dict[str, object]:
    """Return the keys that decide what the state is, as JSON has them."""
    found: dict[str, object] = spec.model_dump(mode="json", exclude=FREE)
    return found
