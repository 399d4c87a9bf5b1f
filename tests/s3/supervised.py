"""The real supervisor with a small deterministic trainer in msrun's place, to be killed often.

`python supervised.py` is the supervisor, `python supervised.py worker` the trainer: its state is a
chain of digests, so that the state of every step is known, and a checkpoint has one file that goes
up in parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

PART_BYTES = 5 * 1024 * 1024
"""The smallest part of S3, so that kills fall into uploads in parts."""
LARGE_BYTES = 2 * PART_BYTES + 12345


def state_of(step: int) -> bytes:
    """Return the state after `step` steps, 32 bytes."""
    state = b"begin"
    for number in range(1, step + 1):
        state = hashlib.sha256(state + number.to_bytes(8, "big")).digest()
    return state


def files_of(step: int) -> dict[str, bytes]:
    """Return what the checkpoint of `step` consists of."""
    state = state_of(step)
    return {
        "state": state,
        "sub/rank-1": state[::-1] * 100,
        "large": (state * (LARGE_BYTES // len(state) + 1))[:LARGE_BYTES],
    }


def train() -> int:
    from jobs.environment import Environment
    from jobs.msrun import die_with_parent
    from jobs.outbox import Outbox

    die_with_parent()
    env = Environment.read()
    spec, outbox = json.loads(env.spec), Outbox(env.work)
    restored = sorted((env.work / "restored").glob("step-*"))
    step = int(restored[-1].name.removeprefix("step-")) if restored else 0
    state = (restored[-1] / "state").read_bytes() if restored else state_of(0)
    assert state == state_of(step), "restored another state"
    outbox.beat(0)
    while step < spec["steps"]:
        step += 1
        state = hashlib.sha256(state + step.to_bytes(8, "big")).digest()
        time.sleep(0.01)
        outbox.append("metrics.jsonl", {"step": step})
        if step % spec["save_every"] == 0 or step == spec["steps"]:
            draft = outbox.draft(step)
            for name, data in files_of(step).items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_bytes(data)
            outbox.publish(draft)
    outbox.summarise(0, {"kind": "train", "steps": step})
    outbox.end(0)
    return 0


def supervise() -> int:
    from jobs import msrun, runtime, uploading

    in_small_parts()

    msrun.command = lambda *_: [sys.executable, __file__, "worker"]
    uploading.PROGRAM = (sys.executable, __file__, "uploader")
    return runtime.main()


def upload() -> int:
    from jobs import sync

    in_small_parts()
    return sync.main()


def in_small_parts() -> None:
    from jobs import s3

    s3.S3Store.__init__.__kwdefaults__["part_bytes"] = PART_BYTES


if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "uploader":
        del sys.argv[1]
    sys.path.insert(0, str(Path(__file__).parent))
    os.chdir(os.environ["JOB_WORK"])
    raise SystemExit({"": supervise, "worker": train, "uploader": upload}[role]())
