"""A pipeline folder with all of SDXL's parts and random weights, from a seed.

For tests that compare two ways of computing: its numbers stay as they are when what ships is
trained anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.tiny.recipe import architecture
from jobs.tiny.recipe.language import write_tokenizers
from jobs.tiny.recipe.pipeline import MODEL_INDEX, SDXL_SCHEDULER, save, write_json
from jobs.tiny.recipe.weights import fill

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
UNET: dict[str, Any] = {
    **architecture.UNET,
    "block_out_channels": (64, 128),
    "attention_head_dim": (2, 4),
    "projection_class_embeddings_input_dim": 6 * 32 + 64,
    "cross_attention_dim": 2 * 64,
}
VAE: dict[str, Any] = {
    **architecture.VAE,
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 16,
    "scaling_factor": 0.13025,
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "brown")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
PLACES = (
    "in the top left corner", "at the top", "in the top right corner", "on the left",
    "in the middle", "on the right", "in the bottom left corner", "at the bottom",
    "in the bottom right corner",
)  # fmt: skip
BACKGROUNDS = ("white", "grey", "pink", "pale blue")


def captions() -> Iterator[str]:
    """Yield what the tokenizers are made from."""
    rng = np.random.Generator(np.random.Philox(0))
    for _ in range(2000):
        picks = [of[int(rng.integers(len(of)))] for of in (COLOURS, SHAPES, PLACES, BACKGROUNDS)]
        colour, shape, place, ground = picks
        article = "an" if colour[0] in "aeiou" else "a"
        yield f"{article} {colour} {shape} {place} on a {ground} background"


def write_folder(folder: Path, seed: int = 0) -> None:
    """Write the pipeline folder that `from_pretrained` reads; the same bytes for the same seed."""
    from mindone.diffusers import AutoencoderKL, UNet2DConditionModel
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers import CLIPTextConfig

    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SDXL_SCHEDULER)
    size = write_tokenizers(folder, captions())
    marks = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    first = CLIPTextConfig(
        vocab_size=size, projection_dim=64, hidden_act="quick_gelu", **TEXT, **marks
    )
    second = CLIPTextConfig(vocab_size=size, projection_dim=64, hidden_act="gelu", **TEXT, **marks)
    parts = {
        "text_encoder": CLIPTextModel(first),
        "text_encoder_2": CLIPTextModelWithProjection(second),
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
    }
    for offset, (name, cell) in enumerate(parts.items()):
        fill(cell, seed + offset)
        save(cell, folder / name)
