"""Owns the result of a whole fine-tune: a pipeline folder that diffusers and mindone open.

Must not know the loop or the store. The folder is the base model's with another UNet; its files are
linked where the disk allows it, so that the parts that were not trained take no room.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jobs import pipelines
from jobs.specs import TrainSpec

UNET_FILE = "diffusion_pytorch_model.safetensors"
"""The name that diffusers gives a part's weights."""
PARTS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae",
)  # fmt: skip


def write_pipeline(
    target: Path, base: Path, spec: TrainSpec, weights: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write the pipeline `base` with other weights of its UNet.

    Args:
        target: a folder that is not there yet.
        base: the folder of the model that was trained.
        spec: the precision decides whether the UNet is written in fp16, else in fp32, since a
            numpy array can't be bf16; its prediction type goes into the scheduler.
        weights: `unet.<name>`; mindone names them as diffusers does.
    """
    (target / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/config.json"):
        shutil.copy(base / name, target / name)
    for part in PARTS:
        for path in sorted((base / part).rglob("*")):
            if path.is_file():
                pipelines.link(path, target / part / path.relative_to(base / part))
    if spec.prediction_type:
        pipelines.set_prediction(target, spec.prediction_type)
    kind = np.float16 if spec.precision == "fp16" else np.float32
    arrays = {
        name.removeprefix("unet."): np.ascontiguousarray(array.astype(kind))
        for name, array in weights.items()
    }
    save_file(arrays, target / "unet" / UNET_FILE, {"format": "pt"})
