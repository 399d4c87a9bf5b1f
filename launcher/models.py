"""Owns what `--model` means at submission: a run's whole fine-tune, and a model's own sizes.

`RUN[@step]` becomes the address of its pipeline folder, so that the job uses the same one whenever
it starts. Must not read weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from jobs import commits, layout
from jobs.specs import TINY, Spec
from jobs.stores import FileStore, Store
from launcher import output, records, storage
from launcher.errors import Forbidden, Misconfigured, NotFound, Unreachable
from launcher.methods import is_default
from launcher.settings import Target

_RUN = re.compile(r"(?P<run>[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)(?:@(?P<step>\d{1,9}))?")


def pin(spec: Spec, target: Target, *, local: bool) -> Spec:
    """Return the spec with an address in place of a run that it names as its model.

    Args:
        spec: as it was asked for.
        target: whose store the run is in.
        local: whether the job will be on this machine, so that the store must answer, and a folder
            of that name goes first.

    Raises:
        NotFound: no such run or committed checkpoint, or none with a whole pipeline yet.
        Misconfigured: the run trained no whole model.
        Forbidden, Unreachable: the store cannot be asked, and the step is not known.
    """
    found = _RUN.fullmatch(spec.model)
    if found is None or spec.model == TINY or (local and Path(spec.model).exists()):
        return spec
    run, step = found["run"], int(found["step"]) if found["step"] else None
    store = storage.of_target(target)
    try:
        if not local and isinstance(store, FileStore) and not store.root.is_dir():
            raise Unreachable(f"store {target.store}: is not mounted here")
        with storage.asking(store):
            step = _step(store, run, step)
    except (Unreachable, Forbidden) as error:
        if local:
            raise
        if step is None:
            hint = f"--model {run}@STEP names a step, and the job looks for it"
            raise type(error)(f"--model {run}: {error.text}", hint) from error
        output.say(f"warning: model {spec.model} was not looked at: {error.text}")
    root = str(store.root) if isinstance(store, FileStore) else store.url.rstrip("/")
    parts = (layout.CHECKPOINTS, layout.step_name(step), layout.PIPELINE)
    return spec.model_copy(update={"model": f"{root}/{layout.key(run, *parts)}"})


def fitted(spec: Spec, origins: Mapping[str, str]) -> Spec:
    """Return the spec of a run on this machine with what fits its model, where nobody chose.

    Pictures of the size that a pipeline folder says its UNet is made for, as diffusers takes it;
    and fp32, since half precision is slower on a CPU and takes more memory.

    Args:
        spec: its model is what `pin` made of it.
        origins: of each key's value.
    """
    sizes = ("resolution",) if spec.kind == "train" else ("width", "height")
    free = {key for key in (*sizes, "precision") if is_default(origins[key])}
    found: dict[str, object] = {"precision": "fp32"} if "precision" in free else {}
    side = _side(Path(spec.model))
    if side and free.issuperset(sizes):
        found |= dict.fromkeys(sizes, side)
    if spec.model == TINY or not found:
        return spec
    told = " ".join(f"{key}={value}" for key, value in found.items())
    output.say(f"local: {told} (fits this model on a CPU; flags and --set choose)")
    return spec.model_copy(update=found)


def _side(folder: Path) -> int | None:
    """Return the side in pixels of the pictures that a pipeline folder is made for, if it says."""
    try:
        unet, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            for part in ("unet", "vae")
        )
        factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(unet["sample_size"]) * factor
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _step(store: Store, run: str, step: int | None) -> int:
    """Return the step that was asked for, or the newest one, if it holds a pipeline."""
    if next(iter(store.list(layout.key(run, ""))), None) is None:
        raise NotFound(
            f"--model {run!r}: no such folder, and no such run in {store.url}",
            "a model is a folder, .safetensors file, hub id (owner/name), run or tiny",
        )
    spec = records.document(store, layout.key(run, layout.SPEC)).get("spec")
    spec = spec if isinstance(spec, dict) else {}
    what = spec.get("method") if spec.get("kind", "train") == "train" else spec.get("kind")
    if what != "vanilla":
        hint = f"--lora {run} paints with it" if str(what).startswith("lora") else ""
        raise Misconfigured(f"--model {run!r}: is a run of {what}, which has no whole model", hint)
    steps = commits.committed_steps(store, run)
    if not steps:
        raise NotFound(
            f"--model {run!r}: has no committed checkpoint yet", f"launcher status {run}"
        )
    wanted = step or steps[-1]
    if wanted not in steps:
        shown = ", ".join(str(step) for step in steps[-8:])
        raise NotFound(f"--model {run}@{step}: no such committed checkpoint", f"there are {shown}")
    prefix = layout.key(run, layout.CHECKPOINTS, layout.step_name(wanted))
    rows = commits.read_manifest(store, prefix).files
    if not any(row.path.startswith(f"{layout.PIPELINE}/") for row in rows):
        raise NotFound(
            f"--model {run}@{wanted}: holds no {layout.PIPELINE} folder",
            "the last checkpoint of a whole fine-tune does, once the run has ended",
        )
    return wanted
