"""Owns the keys of the store: where each record of a run lies. Pure; must not do I/O.

<store>/<run>/claim.json                 whose run it is (see commits)
              spec.json                  what was asked, with its hash; attempts (see history)
              checkpoints/step-00000500/ files, MANIFEST.json, COMMITTED (last); PINNED if it is
              images/00001-00.png        line 1, image 0
              manifest.jsonl             one row a committed picture
              metrics.jsonl              one row a logged step
              logs/attempt-1/            msrun.log, worker_0.log, ...
              logs/node-0/               all that the node's pods printed, by start (see console)
              result.json                columns of the reference, written at the end
              end.json                   how the newest attempt ended, if it could still say so
              nodes/0/                   of a run over several nodes, what each writes for itself:
                claim.json                 painting: whose part of the run it is
                manifest.jsonl             its pictures' rows, which manifest.jsonl above gathers
                part.json                  painting: what its workers did, written at its end
<store>/cache/{graphs,prompts,loras}/<content key>/   shared between runs
"""

from __future__ import annotations

import re
import time

CLAIM = "claim.json"
SPEC = "spec.json"
METRICS = "metrics.jsonl"
PICTURES = "manifest.jsonl"
RESULT = "result.json"
END = "end.json"
PART = "part.json"
NODES = "nodes"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
LOGS = "logs"
LOCAL = "local"
CACHE = "cache"
LORAS = f"{CACHE}/loras/"

MANIFEST = "MANIFEST.json"
COMMITTED = "COMMITTED"
PINNED = "PINNED"
PUSHING = ".pushing"
"""Ends the key beside a set that is being pushed; it is gone when the set is committed."""

PIPELINE = "pipeline"
"""Folder, in the last checkpoint of a whole fine-tune, of the model as diffusers reads it."""
LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name diffusers looks for in a LoRA folder."""

_STEP = re.compile(r"(?:^|/)step-(\d{8,})/?$")
_CONSOLE = re.compile(r"/node-(\d+)/(\d{8}T\d{9}Z)-(\d{4,})\.log$")


def key(run: str, *parts: str) -> str:
    """Return the store key of a record of `run`."""
    return "/".join((run, *parts))


def node_key(run: str, node: int | None, name: str) -> str:
    """Return the key of what a node writes for itself; None is the only node, or all of them."""
    return key(run, name) if node is None else key(run, NODES, str(node), name)


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


def lora_key(sha256: str, name: str) -> str:
    """Return the content-addressed key of a LoRA file; its own name is kept, for people."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name.removesuffix(".safetensors"))
    return f"{LORAS}{sha256}/{plain[:80] or 'lora'}.safetensors"


def lora_digest(key: str) -> str:
    """Return the digest that stands in a key of `lora_key`."""
    return key.removeprefix(LORAS).partition("/")[0]


def lora_name(lora: object) -> str | None:
    """Return what people call a LoRA: its run's name, or its file's."""
    return str(lora).rpartition("/")[2].removesuffix(".safetensors") if lora else None


def console_folder(node: int) -> str:
    """Return the folder, below the logs, of what a node's pods printed."""
    return f"node-{node}"


def console_name(nanoseconds: int) -> str:
    """Return the name of what a pod printed that was started then (ns since the epoch)."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}{rest // 10**6:03d}Z"


def console_of(key: str) -> tuple[int, str, int] | None:
    """Return node, name and part of a key of a pod's copied output, or None for any other key."""
    found = _CONSOLE.search(key)
    return (int(found[1]), found[2], int(found[3])) if found else None
