"""Owns the small SDXL's parts as cells: built, begun from a seed, and written as a pipeline folder.

Must not train them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs import compat
from jobs.tiny.recipe import autoencoder, language
from jobs.tiny.recipe.architecture import UNET
from jobs.tiny.recipe.pipeline import MODEL_INDEX, SDXL_SCHEDULER, save, write_json
from jobs.tiny.recipe.weights import begin, pass_colours


def begun(folder: Path, seed: int) -> dict[str, Any]:
    """Write the tokenizers into a pipeline folder; return its parts, untrained."""
    from mindone.diffusers import UNet2DConditionModel

    texts = (language.told(seed, number)[0] for number in range(4000))
    first, second = language.build(language.write_tokenizers(folder, texts))
    cells = {
        "text_encoder": first,
        "text_encoder_2": second,
        "unet": UNet2DConditionModel(**UNET),
        "vae": autoencoder.build(),
    }
    for offset, cell in enumerate(cells.values()):
        begin(cell, seed + offset)
    pass_colours(cells["vae"])
    return cells


def write(folder: Path, cells: dict[str, Any], scaling: float) -> None:
    """Write parts, scheduler and index beside the tokenizers; `scaling` is that of the latents."""
    predicts = {"prediction_type": "v_prediction"}
    write_json(folder / "scheduler" / "scheduler_config.json", SDXL_SCHEDULER | predicts)
    for name, cell in cells.items():
        with compat.eager():
            save(cell, folder / name)
    path = folder / "vae" / "config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, found | {"scaling_factor": round(scaling, 5)})
    write_json(folder / "model_index.json", MODEL_INDEX)  # last: the folder is whole
