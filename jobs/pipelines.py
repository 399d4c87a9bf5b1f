"""Owns where a model is: hub id, folder or single file, perhaps another VAE -> a pipeline folder.

What is not a pipeline folder becomes one, once for a node, under a lock: so everything that reads
models knows one form. Must not load a model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs import originals, tiny
from jobs.environment import Environment
from jobs.errors import BadSpec, Unavailable
from jobs.specs import TINY
from jobs.stores import durable

log = logging.getLogger("jobs.pipelines")

SINGLE = ".safetensors"
VERSION = 1
"""Part of the name of what is assembled: raise it with any change that changes the files."""
INDEX = "model_index.json"
PARTS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
)  # fmt: skip
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
"""The names that diffusers and transformers give the parts' weights."""
_CONFIGS = {"": INDEX, "scheduler": "scheduler_config.json"}
_SMALL = ("*.json", "*.txt")
"""Configurations and tokenizers."""


def locate(
    model: str,
    revision: str,
    env: Environment,
    *,
    config_from: str = "",
    vae: str | None = None,
    vae_revision: str = "main",
) -> Path:
    """Return the pipeline folder of a model, fetched, converted or put together where needed.

    Args:
        model: pipeline folder, single file (*.safetensors) in the authors' naming, hub id, file
            of a hub repository (owner/name/file.safetensors), or tiny.
        revision: of what is on the hub.
        env: where this job runs.
        config_from: for a single file, which holds weights alone: whose configuration and
            tokenizers it has; a pipeline folder, hub id or tiny.
        vae: takes the place of the model's own: folder, pipeline folder, single file or hub id.
        vae_revision: of a VAE on the hub.

    Raises:
        BadSpec: a folder without a pipeline, a file that is no SDXL, a path that does not exist.
        Unavailable: the hub cannot be reached.
    """
    found = _fetched("model", model, revision, (*_SMALL, "*.safetensors"))
    if found.is_dir() and not (found / INDEX).is_file():
        raise BadSpec(f"model {model}: no {INDEX} in it; name a diffusers pipeline folder")
    base = found
    if found.is_file():
        base = _fetched("model_config_from", config_from, "main", _SMALL)
        if not (base / INDEX).is_file():
            raise BadSpec(f"model_config_from {config_from}: is no diffusers pipeline folder")
    other = None
    if vae is not None:
        patterns = ("*.json", WEIGHTS["vae"], "vae/*")
        other = _fetched("vae", vae, vae_revision, patterns)
        other = other / "vae" if (other / "vae").is_dir() else other
    if found.is_dir() and other is None:
        return found
    return _assembled(found, base, other, env)


def config(folder: Path, part: str) -> dict[str, Any]:
    """Return the configuration of one part of a pipeline folder, or of all of it for "".

    Raises:
        BadSpec: the part is missing.
    """
    path = folder / part / _CONFIGS.get(part, "config.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSpec(
            f"model {folder}: {path.name} of {part or 'the pipeline'} cannot be read: {error}"
        ) from error
    return found


def link(source: Path, target: Path) -> None:
    """Make a file appear a second time, without its bytes where the disk allows that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # the hub's cache holds links
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def set_prediction(folder: Path, prediction: str) -> None:
    """Say in a pipeline folder what its UNet predicts."""
    found = config(folder, "scheduler") | {"prediction_type": prediction}
    path = folder / "scheduler" / _CONFIGS["scheduler"]
    path.unlink()  # a link: the base model's own file must stay
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _fetched(key: str, value: str, revision: str, patterns: tuple[str, ...]) -> Path:
    """Return the folder or file that a key of the spec names."""
    if value == TINY:
        return tiny.MODEL
    path = Path(value)
    if path.is_dir() or (path.is_file() and value.endswith(SINGLE)):
        return path
    if path.is_file():
        raise BadSpec(f"{key} {value}: is no {SINGLE} file; others may run code when they are read")
    names = value.split("/")
    whole = len(names) == 2
    if path.is_absolute() or value.startswith(".") or not (
        whole or (len(names) > 2 and value.endswith(SINGLE))
    ):  # fmt: skip
        raise BadSpec(f"{key} {value}: no such folder or file, and not a hub id (owner/name)")
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if not whole:
            name = "/".join(names[2:])
            return Path(hf_hub_download("/".join(names[:2]), name, revision=revision))
        return Path(snapshot_download(value, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise Unavailable(
            f"{key} {value}: the hub gave nothing ({reason}); name a folder"
        ) from error


def _assembled(found: Path, base: Path, other: Path | None, env: Environment) -> Path:
    """Return a pipeline folder of what was found, made by the first worker of the node to ask."""
    sources = [path for path in (found, base, other) if path is not None]
    identity = json.dumps([VERSION, [_identity(path) for path in sources]])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    # Named after the model: messages name the folder.
    folder = env.cache / f"{found.name.removesuffix(SINGLE)}-{digest}"
    with _locked(env.cache / f"{folder.name}.lock"):
        if not folder.is_dir():
            started = time.monotonic()
            part = folder.with_name(f".part-{folder.name}")
            shutil.rmtree(part, ignore_errors=True)
            _assemble(part, found, base, other)
            for path in part.rglob("*"):
                if path.is_file():
                    durable(path)
            part.rename(folder)
            log.info("assembled=%s seconds=%.1f", folder, time.monotonic() - started)
    return folder


def _identity(source: Path) -> list[list[object]]:
    """Return what changes when a file of the source does; hashing 7 GB would take a minute."""
    files = [source] if source.is_file() else [p for p in sorted(source.rglob("*")) if p.is_file()]
    facts = [(path.resolve(), path.stat()) for path in files]
    return [[str(path), row.st_size, row.st_mtime_ns] for path, row in facts]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _assemble(target: Path, found: Path, base: Path, other: Path | None) -> None:
    """Write a pipeline folder.

    Args:
        target: the folder, not there yet.
        found: a pipeline folder, or a single file.
        base: where configurations and tokenizers are from; the same folder, if it is one.
        other: the VAE that takes the place of the model's; a folder or a file.
    """
    target.mkdir(parents=True)
    link(base / INDEX, target / INDEX)
    single = found.is_file()
    for part in PARTS:
        for path in sorted((base / part).rglob("*")):
            heavy = path.suffix in (SINGLE, ".bin", ".onnx", ".msgpack", ".ckpt")
            if path.is_file() and not (heavy and (single or (part == "vae" and other))):
                link(path, target / part / path.relative_to(base / part))
    if single:
        arrays = originals.read(found)
        configs = {part: config(target, part) for part in WEIGHTS}
        for part, weights in originals.parts(arrays, configs, str(found)).items():
            _save(target / part / WEIGHTS[part], weights)
        if originals.V_PREDICTION in arrays:
            set_prediction(target, "v_prediction")
    if other is not None:
        _replace_vae(target / "vae", other)


def _replace_vae(folder: Path, other: Path) -> None:
    """Put another VAE into the folder; a single file keeps the configuration that is there."""
    if other.is_file():
        arrays = originals.vae(originals.read(other), config(folder.parent, "vae"), str(other))
        (folder / WEIGHTS["vae"]).unlink(missing_ok=True)
        _save(folder / WEIGHTS["vae"], arrays)
        return
    names = ("config.json", WEIGHTS["vae"])
    for name in names:
        if not (other / name).is_file():
            raise BadSpec(f"vae {other}: no {name} in it; name a VAE's folder, or its file")
    shutil.rmtree(folder)
    for name in names:
        link(other / name, folder / name)


def _save(path: Path, arrays: originals.Arrays) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, {"format": "pt"})
