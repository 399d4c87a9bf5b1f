"""Owns the pipeline folder as diffusers and transformers lay it out, in fp32 and halved.

Must not know how its parts are trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

# SDXL base 1.0's own scheduler keys: a bare configuration would make DDIM clip its samples.
SDXL_SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "sample_max_value": 1.0,
    "trained_betas": None,
}
MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
_LEAVES = {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}
"""MindSpore's names of a norm's and an embedding's weights, and PyTorch's."""


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file of JSON, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _to_pytorch(path: Path) -> None:
    """Rewrite a file with PyTorch's names, as base models have them; mindone writes MindSpore's."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(path)
    named = {}
    for name, array in arrays.items():
        head, _, leaf = name.rpartition(".")
        named[f"{head}.{_LEAVES.get(leaf, leaf)}"] = array
    save_file(named, path, {"format": "pt"})  # transformers refuses files that do not say `pt`


def save(cell: Any, folder: Path) -> None:
    """Write one part: its configuration, and its weights under PyTorch's names."""
    cell.save_pretrained(str(folder))
    (path,) = folder.glob("*.safetensors")
    _to_pytorch(path)


def halve(source: Path, target: Path, card: str) -> None:
    """Write a pipeline folder again with its weights in fp16, and its card.

    Files of other kinds are left out. What lies in `target` is replaced, once all is written.
    """
    from safetensors.numpy import load_file, save_file

    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.suffix not in (".json", ".txt", ".safetensors"):
            continue
        other = part / path.relative_to(source)
        other.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".safetensors":
            shutil.copyfile(path, other)
            continue
        arrays = {name: array.astype(np.float16) for name, array in load_file(path).items()}
        save_file(arrays, other, {"format": "pt"})
        other.chmod(0o644)  # which would be its owner's alone
    (part / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
