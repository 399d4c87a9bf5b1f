"""Owns a checkpoint on disk: the whole loop state, and the LoRA as diffusers reads it.

    state.safetensors   what is trained (fp32) and both Adam moments, by parameter name
    state.json          step, loss scale and what the state belongs to
    pytorch_lora_weights.safetensors   LoRA methods only

Must not know the store: a checkpoint is handed over through the outbox.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from jobs import layout
from jobs.errors import BadSpec
from jobs.lora import diffusers_weights
from jobs.specs import TrainSpec
from jobs.step import TrainStep

STATE, LOOP = "state.safetensors", "state.json"


def save(folder: Path, spec: TrainSpec, step: TrainStep, done: int) -> None:
    """Write the state after `done` steps into an empty folder."""
    arrays = {name: p.asnumpy() for name, p in step.state().items()}
    # PyTorch's readers refuse files that do not say `pt`.
    save_file(arrays, folder / STATE, {"format": "pt"})
    loop = {"step": done, "seed": spec.seed, "method": spec.method, "trained": len(step.weights)}
    (folder / LOOP).write_text(json.dumps(loop, indent=1) + "\n", encoding="utf-8")
    if spec.method != "vanilla":
        weights = diffusers_weights(step.trained(), spec.lora_alpha / spec.lora_rank)
        save_file(weights, folder / layout.LORA_FILE, {"format": "pt"})


def restore(folder: Path, spec: TrainSpec, step: TrainStep) -> int:
    """Set the state from a folder; return the number of steps done.

    Raises:
        BadSpec: the state is not of this method, model or rank.
    """
    import mindspore as ms

    loop = json.loads((folder / LOOP).read_text(encoding="utf-8"))
    arrays = load_file(folder / STATE)
    parameters = step.state()
    fits = set(parameters) == set(arrays) and all(
        tuple(parameters[name].shape) == array.shape for name, array in arrays.items()
    )
    if not fits or loop["method"] != spec.method:
        raise BadSpec(
            f"checkpoint {folder.name}: of another method, model or rank; use a new run name"
        )
    for name, array in arrays.items():
        # A copy that keeps the shape: another shape, of a scalar too, would be another graph.
        parameters[name].set_data(ms.Tensor(np.array(array)))
    return int(loop["step"])
