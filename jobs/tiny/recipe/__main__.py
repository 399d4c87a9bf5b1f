"""Make the small SDXL from nothing: `python -m jobs.tiny.recipe FOLDER [--seed 0]`.

One stage after another, each taken up where it was left: drawings, tokenizers, VAE, text encoders,
then the UNet with the suite's own trainer (`launcher submit train --method vanilla`) as FOLDER's
train.yaml says. FOLDER/model is what ships, of the newest checkpoint: it takes the place of
jobs/tiny/model. Must not know how any of the parts is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs import compat, exports, layout, versions
from jobs.errors import BadSpec, JobError
from jobs.specs import TrainSpec
from jobs.tiny import folders
from jobs.tiny.recipe import assembly, autoencoder, language
from jobs.tiny.recipe.architecture import SIDE, TEXT, UNET, VAE
from jobs.tiny.recipe.card import card
from jobs.tiny.recipe.pipeline import TOKENIZERS, halve, write_json

log = logging.getLogger("jobs.tiny.recipe")

PICTURES = 12_000
CORES = 2
"""What is computed on: with another number the last bits would be others."""
RUN, WORKERS = "tiny-sdxl", 2
TRAINING: dict[str, Any] = {
    "method": "vanilla", "precision": "fp32", "resolution": SIDE, "batch_size": 16,
    "steps": 9_700, "learning_rate": 1e-3, "lr_schedule": "cosine-restarts", "lr_cycles": 2,
    "warmup_steps": 300, "weight_decay": 1e-3, "adam_beta2": 0.99, "ema_decay": 0.999,
    "caption_dropout": 0.1,
    "save_every": 250, "keep_last": 3, "keep_every": 1000, "log_every": 50,
}  # fmt: skip
"""What the UNet is trained with, by each of WORKERS; keys of TrainSpec. In JSON, which is YAML."""
LEAST_PSNR, LEAST_ACCURACY = 26.0, 0.97
"""Of a VAE and of text encoders that are worth hours of training a UNet on them: dB, share."""


def settings(seed: int) -> dict[str, Any]:
    """Return all that decides the result; half a recipe is not gone on with by another one."""
    phases = [[side, dataclasses.asdict(plan)] for side, plan in autoencoder.PHASES]
    found = {
        "seed": seed, "pictures": PICTURES, "training": TRAINING, "workers": WORKERS,
        "text": TEXT, "unet": UNET, "vae": VAE, "phases": phases, "pull": autoencoder.PULL,
        "encoders": dataclasses.asdict(language.PLAN), "drawings": drawings(),
        "versions": versions.of(["mindone", "mindspore", "pillow", "tokenizers"]),
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def drawings() -> str:
    """Return a digest of some of what is drawn, in all styles, and of what is said of it."""
    texts = (text for _, text in folders.flat(0, range(60), 8))
    drawn = autoencoder.pixels(0, range(60)).tobytes()
    return hashlib.sha256(drawn + "\n".join(texts).encode()).hexdigest()


def assemble(folder: Path, seed: int) -> None:
    """Train the frozen parts and write the pipeline folder, its UNet untrained.

    Raises:
        BadSpec: they have become too bad to go on with.
    """
    from transformers import CLIPTokenizer

    base = folder / "base"
    cells = assembly.begun(base, seed)
    autoencoder.train(cells["vae"], seed, folder / "vae")
    scaling, psnr = autoencoder.measure(cells["vae"], seed)
    log.info("vae scaling_factor=%.5f psnr_db=%s", scaling, json.dumps(psnr))
    if min(psnr.values()) < LEAST_PSNR:
        raise BadSpec(f"the VAE: {psnr} dB, where {LEAST_PSNR} is the least")
    encoders = cells["text_encoder"], cells["text_encoder_2"]
    first, second = (CLIPTokenizer.from_pretrained(base / name) for name in TOKENIZERS)
    accuracy = language.train(encoders, (first, second), seed, folder / "text")
    log.info("text accuracy=%s", json.dumps(accuracy))
    if min(accuracy.values()) < LEAST_ACCURACY:
        raise BadSpec(f"the text encoders: {accuracy}, where {LEAST_ACCURACY} is the least")
    write_json(folder / "facts.json", {"psnr_db": psnr, "accuracy": accuracy})
    assembly.write(base, cells, scaling)


def train(folder: Path, seed: int) -> int:
    """Train the UNet, from its newest checkpoint on; return the launcher's exit code."""
    data = {"model": str(folder / "base"), "data": str(folder / "pictures")}
    write_json(folder / "train.yaml", TRAINING | {"seed": seed} | data)
    command = [sys.executable, "-m", "launcher.cli", "submit", "train", "--backend", "local"]
    command += ["--npus", str(WORKERS), "--name", RUN, "--store", str(folder / "runs")]
    command += ["--spec", str(folder / "train.yaml"), "--idempotent", "--wait"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCHER_")}
    return subprocess.run(command, cwd=folder, env=plain, check=False).returncode


def ship(folder: Path) -> None:
    """Write FOLDER/model in fp16, of the newest checkpoint: the average of the UNet's weights.

    Raises:
        BadSpec: there is no checkpoint.
    """
    from safetensors.numpy import load_file

    found = sorted((folder / "runs" / RUN / layout.CHECKPOINTS).glob(f"*/{layout.COMMITTED}"))
    if not found:
        raise BadSpec(f"{folder / 'runs' / RUN}: holds no checkpoint to ship")
    checkpoint, average, whole = found[-1].parent, "ema.", folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    arrays = load_file(checkpoint / "state.safetensors")
    weights = {n.removeprefix(average): a for n, a in arrays.items() if n.startswith(average)}
    exports.write_pipeline(whole, folder / "base", TrainSpec(precision="fp32"), weights)
    halve(whole, folder / "model", card(folder, layout.step_of(checkpoint.name) or 0))


def main() -> int:
    """Run the stages that are not done yet; return 0, the trainer's exit code, or a job's."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.recipe", description=__doc__)
    parser.add_argument("folder", type=Path, help="where everything is made and kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts-only", action="store_true", help="stop before the UNet")
    parser.add_argument("--ship", action="store_true", help="write FOLDER/model, train nothing")
    given = parser.parse_args()
    if not 0 <= given.seed < 2**63:
        parser.error("--seed: from 0 to 2^63 - 1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    folder = given.folder.resolve()
    try:
        if not given.ship:
            return made(folder, given)
        ship(folder)
        return 0
    except (JobError, OSError, FloatingPointError) as error:
        log.error("error: %s", error)
        return error.code if isinstance(error, JobError) else 70


def made(folder: Path, given: argparse.Namespace) -> int:
    """Run the stages that are not done yet; return 0, or the trainer's exit code.

    Raises:
        BadSpec: the folder is another recipe's, or a part has become too bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "recipe.json", settings(given.seed)
    if not path.exists():
        write_json(path, wanted)
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BadSpec(f"{path}: is no recipe; take a new folder") from error
    if changed := sorted(key for key in wanted if before.get(key) != wanted[key]):
        raise BadSpec(f"{folder}: was begun with other {', '.join(changed)}; take a new folder")
    if not (folder / "pictures").is_dir():
        folders.write(folder / "pictures", folders.flat(given.seed, range(PICTURES)))
    if not (folder / "base" / "model_index.json").is_file():
        compat.pin(0, CORES)
        compat.take("CPU")
        assemble(folder, given.seed)
    if given.parts_only:
        return 0
    code = train(folder, given.seed)
    if code == 0:
        ship(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
