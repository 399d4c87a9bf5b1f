"""Make the small SDXL from nothing: `python -m jobs.tiny.recipe FOLDER [--seed 0]`.

One stage after another, each taken up where it was left: drawings, tokenizers, VAE, text encoders,
then the UNet with the suite's own trainer (`launcher submit train --method vanilla`) as FOLDER's
train.yaml says. Must not know how any of the parts is trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.compat import eager
from jobs.tiny import folders, pipeline
from jobs.tiny.recipe import autoencoder, language
from jobs.tiny.recipe.architecture import SIDE, UNET, VAE
from jobs.tiny.recipe.weights import begin

log = logging.getLogger("jobs.tiny.recipe")

PICTURES = 12_000
TRAINING: dict[str, Any] = {
    "method": "vanilla", "precision": "fp32", "resolution": SIDE, "batch_size": 32,
    "steps": 16_000, "learning_rate": 1e-3, "lr_schedule": "cosine", "warmup_steps": 500,
    "weight_decay": 1e-3, "adam_beta2": 0.99, "ema_decay": 0.999, "caption_dropout": 0.1,
    "save_every": 250, "keep_last": 3, "keep_every": 4000, "log_every": 50,
}  # fmt: skip
"""What the UNet is trained with; keys of TrainSpec. In JSON, which is YAML."""
SCHEDULER = {**pipeline.SCHEDULER, "prediction_type": "v_prediction"}


def assemble(folder: Path, seed: int) -> None:
    """Train the frozen parts and write the pipeline folder, its UNet untrained."""
    base = folder / "base"
    size = language.write_tokenizers(base, seed)
    vae = autoencoder.build()
    begin(vae, seed + 3)
    autoencoder.train(vae, seed, folder / "vae")
    scaling, psnr = autoencoder.measure(vae, seed)
    told = {style: round(value, 2) for style, value in psnr.items()}
    log.info("vae scaling_factor=%.5f psnr_db=%s", scaling, json.dumps(told))
    encoders = language.build(size)
    for offset, cell in enumerate(encoders):
        begin(cell, seed + offset)
    from transformers import CLIPTokenizer

    first, second = (CLIPTokenizer.from_pretrained(base / name) for name in pipeline.TOKENIZERS)
    accuracy = language.train(encoders, (first, second), seed, folder / "text")
    log.info("text accuracy=%s", json.dumps(accuracy))
    from mindone.diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**UNET)
    begin(unet, seed + 2)
    pipeline.write_json(base / "scheduler" / "scheduler_config.json", SCHEDULER)
    cells = {"text_encoder": encoders[0], "text_encoder_2": encoders[1], "unet": unet, "vae": vae}
    for name, cell in cells.items():
        with eager():
            pipeline.save(cell, base / name)
    path = base / "vae" / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")) | {"scaling_factor": round(scaling, 5)}
    pipeline.write_json(path, found)
    facts = {"psnr_db": told, "accuracy": accuracy, "seed": seed, "vae": VAE["block_out_channels"]}
    pipeline.write_json(folder / "facts.json", facts)
    pipeline.write_json(base / "model_index.json", pipeline.INDEX)  # last: the folder is whole


def main() -> int:
    """Run the stages that are not done yet; return the trainer's exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.recipe", description=__doc__)
    parser.add_argument("folder", type=Path, help="where everything is made and kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts-only", action="store_true", help="stop before the UNet")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    folder, seed = given.folder.resolve(), given.seed
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pictures").is_dir():
        folders.write(folder / "pictures", folders.flat(seed, range(PICTURES)))
    if not (folder / "base" / "model_index.json").is_file():
        import mindspore as ms

        ms.set_context(mode=ms.GRAPH_MODE)
        assemble(folder, seed)
    spec = {
        **TRAINING,
        "seed": seed,
        "model": str(folder / "base"),
        "data": str(folder / "pictures"),
    }
    pipeline.write_json(folder / "train.yaml", spec)
    if given.parts_only:
        return 0
    command = ["launcher", "submit", "train", "--backend", "local", "--name", "tiny-sdxl"]
    command += ["--spec", str(folder / "train.yaml"), "--wait"]
    return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
