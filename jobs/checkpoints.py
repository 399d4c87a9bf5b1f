"""Owns a checkpoint on disk: the whole loop state, and the LoRA as diffusers reads it.

    state.safetensors   what is trained (fp32), both Adam moments, its average, the loss scale
    state.json          the step, and the spec that the state belongs to
    pytorch_lora_weights.safetensors   LoRA methods only

Must not know the store: a checkpoint is handed over through the outbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from jobs import layout
from jobs.errors import BadSpec
from jobs.lora import diffusers_weights
from jobs.specs import TrainSpec
from jobs.step import TrainStep

STATE, LOOP = "state.safetensors", "state.json"
FREE = {
    "kind", "model", "data", "save_every", "keep_last", "keep_every", "log_every",
    "validation_prompts", "validate_every", "validation_steps", "max_minutes",
}  # fmt: skip
"""Keys that change no number of the state; model and data, since an address becomes the path of
this node's copy. Whoever submits compares those."""


def save(folder: Path, spec: TrainSpec, step: TrainStep, done: int) -> None:
    """Write the state after `done` steps into an empty folder."""
    arrays = {name: p.asnumpy() for name, p in step.state().items()}
    # PyTorch's readers refuse files that do not say `pt`.
    save_file(arrays, folder / STATE, {"format": "pt"})
    loop = {"step": done, "spec": _decisive(spec)}
    (folder / LOOP).write_text(json.dumps(loop, indent=1) + "\n", encoding="utf-8")
    if spec.method != "vanilla":
        weights = diffusers_weights(step.weights(), spec.lora_alpha / spec.lora_rank)
        save_file(weights, folder / layout.LORA_FILE, {"format": "pt"})


def restore(folder: Path, spec: TrainSpec, step: TrainStep) -> int:
    """Set the state from a folder; return the number of steps done.

    Raises:
        BadSpec: the state is of another spec, whose differing keys are named, or of another model.
    """
    import mindspore as ms

    loop = json.loads((folder / LOOP).read_text(encoding="utf-8"))
    # Version 0.1.0 wrote the method and no spec.
    before = loop.get("spec") or {**_decisive(spec), "method": loop["method"]}
    if changed := differences(before, spec):
        raise BadSpec(
            f"checkpoint {folder.name}: was made with other values: {'; '.join(changed)}; "
            "repeat its values, or use a new run name"
        )
    arrays = load_file(folder / STATE)
    parameters = step.state()
    if set(parameters) != set(arrays) or any(
        tuple(parameters[name].shape) != array.shape for name, array in arrays.items()
    ):
        raise BadSpec(f"checkpoint {folder.name}: of another model; use a new run name")
    for name, array in arrays.items():
        # A copy that keeps the shape: another shape, of a scalar too, would be another graph.
        parameters[name].set_data(ms.Tensor(np.array(array)))
    return int(loop["step"])


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
