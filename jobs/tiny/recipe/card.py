"""Owns what the small SDXL's model card says, in the form of the model hub's cards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jobs import pipelines
from jobs.tiny import scenes
from jobs.tiny.recipe.architecture import SIDE

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# A small SDXL that paints drawings

All of SDXL's parts (two text encoders, VAE, UNet with size and crop conditioning) with few
channels, for trying a fine-tuning or a job out on a CPU in a minute. It paints {side} x {side}
pixels, and knows {shapes},
{things}, in {colours},
at nine places, small and large, one to four of a kind, shapes filled, outlined and striped,
on {backgrounds} backgrounds, told in plain English: *a red circle in
the top left corner on a cream background*. It knows nothing else.

| part | parameters |
|---|---|
{rows}
| all | {total:.2f} million, fp16 |

Made by `python -m jobs.tiny.recipe FOLDER --seed {seed}` of this package from random weights and
{pictures:,} pictures that the package draws itself: no picture, caption or weight of anybody else
went into it. The VAE was trained first (PSNR in dB: {psnr};
scaling factor {scaling}), then the text encoders, to tell what captions say (right on new captions:
{accuracy}); the UNet has
seen {samples:,} samples in {step:,} steps, predicts velocities, and is the average of its last
steps' weights. A fifth of all combinations of colour, shape and place was kept out of the
training, for tests (`jobs.tiny.scenes.apart`).

Best at 30 steps with a guidance of 4. Licence: Apache-2.0, as the package.
"""


def card(folder: Path, step: int) -> str:
    """Return the card of what a recipe's folder holds, its UNet after `step` steps."""
    recipe, facts = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("recipe.json", "facts.json")
    )
    numbers = {part: _parameters(folder / "base" / part) for part in pipelines.WEIGHTS}
    return _CARD.format(
        side=SIDE,
        shapes=_listed(scenes.SHAPES),
        things=_listed(scenes.THINGS),
        colours=_listed(scenes.COLOURS),
        backgrounds=_listed(scenes.GROUNDS),
        rows="\n".join(f"| {part} | {number:,} |" for part, number in numbers.items()),
        total=sum(numbers.values()) / 1e6,
        seed=recipe["seed"],
        pictures=recipe["pictures"],
        psnr=_told(facts["psnr_db"], ".1f"),
        scaling=pipelines.config(folder / "base", "vae")["scaling_factor"],
        accuracy=_told(facts["accuracy"], ".1%"),
        samples=step * recipe["training"]["batch_size"] * recipe["workers"],
        step=step,
    )


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "np") as opened:
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


def _told(rows: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in rows.items())
