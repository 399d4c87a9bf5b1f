"""Owns the keys of the store: where each record of a run lies. Pure; must not do I/O.

<store>/<run>/claim.json                 whose run it is (see commits)
              spec.json                  what was asked, with its hash
              checkpoints/step-00000500/ files, MANIFEST.json, COMMITTED (last); PINNED if it is
              images/00001-00.png        line 1, image 0
              manifest.jsonl             one row a committed picture
              metrics.jsonl              one row a logged step
              logs/attempt-1/            supervisor.log, worker_0.log, ...
              result.json                columns of the reference, written at the end
<store>/cache/{graphs,prompts}/<content key>/   shared between runs
"""

from __future__ import annotations

import re

CLAIM = "claim.json"
SPEC = "spec.json"
METRICS = "metrics.jsonl"
PICTURES = "manifest.jsonl"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
LOGS = "logs"
LOCAL = "local"
CACHE = "cache"

MANIFEST = "MANIFEST.json"
COMMITTED = "COMMITTED"
PINNED = "PINNED"
PUSHING = ".pushing"
"""Ends the key beside a set that is being pushed; it is gone when the set is committed."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name diffusers looks for in a LoRA folder."""

_STEP = re.compile(r"(?:^|/)step-(\d{8,})/?$")


def key(run: str, *parts: str) -> str:
    """Return the store key of a record of `run`."""
    return "/".join((run, *parts))


def step_name(step: int) -> str:
    """Return the folder name of a checkpoint; sorts by step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step in a checkpoint's folder name or key, or None for any other name."""
    found = _STEP.search(name)
    return int(found.group(1)) if found else None


def picture_name(line: int, image: int) -> str:
    """Return the file name of picture `image` (from 0) of prompt line `line` (from 1)."""
    return f"{line:05d}-{image:02d}.png"


def prompts_key(sha256: str) -> str:
    """Return the content-addressed key of a prompt file that is too long for a spec."""
    return f"{CACHE}/prompts/{sha256}.jsonl"
