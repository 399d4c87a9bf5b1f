"""Owns the recipe that a picture carries: how it was painted, for people, web UIs and `--like`.

Pure; must not read or write files. Nothing of when and where a picture was painted stands in its
recipe: the same picture has the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs import layout
from jobs.errors import BadData
from jobs.specs import InferSpec, PromptRow

PARAMETERS = "parameters"
"""Key of the text that web UIs write and read."""
RECIPE = "recipe"
"""Key of the JSON that `--like` reads."""
SAMPLERS = {
    "DDIM": "DDIM",
    "DDIMParallel": "DDIM",
    "LMS": "LMS",
    "DPMSolverSinglestep": "DPM++ 2S",
    "DPMSolverMultistep": "DPM++ 2M",
    "EulerDiscrete": "Euler",
    "EulerAncestral": "Euler a",
}
"""Scheduler -> what web UIs call it."""
_SPEC_KEYS = (
    "model", "model_revision", "model_config_from", "vae", "vae_revision", "precision",
    "prediction_type", "lora", "lora_step", "lora_sha256", "lora_weight", "scheduler", "steps",
    "guidance", "guidance_rescale", "width", "height", "batch_size", "seed", "negative",
)  # fmt: skip
"""Keys of a recipe that are keys of a spec as they are."""


def texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the PNG text chunks of a picture, by key.

    Args:
        row: its settings; keys that are None are left out.
    """
    known = {key: value for key, value in row.items() if value is not None}
    return {PARAMETERS: _parameters(known), RECIPE: json.dumps(known, sort_keys=True)}


def _parameters(row: Mapping[str, Any]) -> str:
    """Return the form of AUTOMATIC1111's web UI: prompt, negative prompt, one line of settings."""
    scheduler = str(row.get("scheduler", ""))
    settings = {
        "Steps": row.get("steps"),
        "Sampler": SAMPLERS.get(scheduler, scheduler),
        "CFG scale": row.get("guidance"),
        "Seed": row.get("seed"),
        "Size": f"{row.get('width')}x{row.get('height')}",
        "Model": row.get("model"),
        "CFG Rescale": row.get("guidance_rescale") or None,
        "VAE": row.get("vae"),
        "Lora": layout.lora_name(row.get("lora")),
    }
    given = {name: value for name, value in settings.items() if value not in ("", None)}
    told = ", ".join(f"{name}: {_quoted(value)}" for name, value in given.items())
    lines = [_one_line(row.get("prompt")), told]
    if row.get("negative"):
        lines.insert(1, f"Negative prompt: {_one_line(row['negative'])}")
    return "\n".join(lines)


def _one_line(text: object) -> str:
    return " ".join(str(text).splitlines())


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if any(mark in text for mark in ',:"\n') else text


def spec_of(texts: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the keys of a spec that paints the picture again, to the byte.

    Its line, image number and place in its batch are kept, since its bits depend on them.

    Args:
        texts: the picture's text chunks.
        name: what messages call the picture.

    Raises:
        BadData: there is no recipe, or it is damaged.
    """
    found = texts.get(RECIPE)
    if not isinstance(found, str):
        more = "; its parameters are of another program" if PARAMETERS in texts else ""
        raise BadData(f"{name}: carries no recipe{more}")
    try:
        row = json.loads(found)
        line, image, slot = (int(row[key]) for key in ("line", "image", "slot"))
        prompt, size = str(row["prompt"]), int(row["batch_size"])
        if line < 1 or not 0 <= image < 1000 or not 0 <= slot < size or not prompt:
            raise ValueError(found)
        lines = (PromptRow(line=line, prompt=prompt, images=image + 1),)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BadData(f"{name}: its recipe is damaged") from error
    kept = {key: row[key] for key in _SPEC_KEYS if row.get(key) is not None}
    if str(kept.get("scheduler")) not in SAMPLERS:
        kept.pop("scheduler", None)  # the model's own, of a kind that no spec names
    place = {"only": f"{line}.{image}", "first_slot": (slot - image) % size}
    return {**kept, **place, "prompts": lines}


def recipe(row: Mapping[str, Any], spec: InferSpec, lora_step: int | None) -> dict[str, Any]:
    """Return a picture's recipe: the settings of its row and what holds for all of the job.

    Args:
        row: line, image, slot, prompt and settings of the picture.
        spec: the job's, as it was submitted.
        lora_step: the step that was used.
    """
    lora = {
        "lora": spec.lora,
        "lora_step": lora_step,
        "lora_sha256": spec.lora_sha256,
        "lora_weight": spec.lora_weight,
    }
    single = {"model_config_from": spec.model_config_from}
    return {
        **row,
        "model": spec.model,
        "model_revision": spec.model_revision,
        **(single if spec.model.endswith(".safetensors") else {}),
        **({"vae": spec.vae, "vae_revision": spec.vae_revision} if spec.vae else {}),
        **({"prediction_type": spec.prediction_type} if spec.prediction_type else {}),
        "precision": spec.precision,
        "batch_size": spec.batch_size,
        **(lora if spec.lora else {}),
    }
