"""Owns bringing the LoRA that a spec names to a worker: from a run, the store's cache, a file.

Must not know what stands in it (lora.py) nor merge it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jobs import commits, layout
from jobs.environment import Environment, Worker
from jobs.errors import BadData, BadSpec
from jobs.inferspec import InferSpec
from jobs.stores import Store, sha256_of

STATE = "state.json"
"""What a training checkpoint says of itself (checkpoints.py)."""


@dataclass(frozen=True, slots=True)
class Source:
    """A LoRA file on this node, whole."""

    path: Path
    what: str
    """What messages call it."""
    step: int | None = None
    """Of the run that trained it."""
    prediction: str | None = None
    """What that run's UNet predicts, where it is something else than the model's own."""


def find(spec: InferSpec, store: Store, env: Environment) -> Source:
    """Return the LoRA file that the spec names.

    Raises:
        BadSpec: there is none: no such run, step or file, or a run of another method.
        BadData: it is not the one that was committed or submitted.
    """
    assert spec.lora is not None
    if spec.lora.startswith("/"):  # staged, or a path of this machine
        return _of_path(Path(spec.lora), spec)
    target = env.work / "lora" / f"{Worker.read().rank}.safetensors"
    if spec.lora.startswith(layout.LORAS):
        name = spec.lora.rpartition("/")[2]
        _get(store, spec.lora, target, f"lora {name}")
        _compare(target, layout.lora_digest(spec.lora), f"lora {name}")
        return Source(target, f"lora {name}")
    return _of_run(spec.lora, spec.lora_step, store, target)


def _of_path(path: Path, spec: InferSpec) -> Source:
    what = f"lora {path.name}"
    if not path.is_file():
        raise BadSpec(f"lora {path}: no such file")
    if spec.lora_sha256 is not None:
        _compare(path, spec.lora_sha256, what)
    return Source(path, what)


def _of_run(run: str, step: int | None, store: Store, target: Path) -> Source:
    steps = commits.committed_steps(store, run)
    if not steps or (step or steps[-1]) not in steps:
        raise BadSpec(f"lora {run}: committed steps are {steps or 'none'}, asked for {step}")
    step = step or steps[-1]
    prefix = layout.key(run, layout.CHECKPOINTS, layout.step_name(step))
    files = {row.path: row.sha256 for row in commits.read_manifest(store, prefix).files}
    if layout.LORA_FILE not in files:
        raise BadSpec(f"lora {run}: step {step} holds no LoRA; it was trained by another method")
    _get(store, f"{prefix}/{layout.LORA_FILE}", target, f"lora {run}")
    _compare(target, files[layout.LORA_FILE], f"lora {run}")
    prediction = _prediction(store, prefix) if STATE in files else None
    return Source(target, f"lora {run}@{step}", step, prediction)


def _prediction(store: Store, prefix: str) -> str | None:
    """Return what the run that wrote a checkpoint was told to predict, if it was told."""
    try:
        found = json.loads(store.read(f"{prefix}/{STATE}"))["spec"].get("prediction_type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(f"{prefix}/{STATE}: is not the file that was committed") from error
    return None if found is None else str(found)


def _get(store: Store, key: str, target: Path, what: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.get(key, target)
    except FileNotFoundError as error:
        raise BadSpec(f"{what}: {key} is not in the store {store.url}") from error


def _compare(path: Path, digest: str, what: str) -> None:
    if sha256_of(path) != digest:
        raise BadData(f"{what}: is not the file that was committed or submitted")
