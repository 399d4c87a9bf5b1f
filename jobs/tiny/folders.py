"""Owns image folders of drawings: what the small SDXL is made from, and styles to fine-tune it on.

Must not decide what scenes show or how they look.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from jobs import draws
from jobs.tiny import brush, captions, scenes

TRIGGERS: dict[brush.Style, str] = {"hatched": "hatched style", "neon": "neon outline style"}
"""What the captions of a style's pictures end with."""
_CAPTION = 69


def write(folder: Path, rows: Iterable[tuple[Image.Image, str]]) -> None:
    """Write an image folder of pictures and captions, all of it or nothing."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (picture, caption) in enumerate(rows):
        name = f"{number:05d}.png"
        picture.save(part / name)
        lines.append(json.dumps({"file_name": name, "text": caption}))
    (part / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.rename(folder)


def flat(seed: int, numbers: range, size: int = 128) -> Iterable[tuple[Image.Image, str]]:
    """Yield scenes as the model is trained on them, told in varied words."""
    for number in numbers:
        scene = scenes.scene(seed, number)
        said = captions.varied(scene, draws.generator(seed, _CAPTION, number))
        yield brush.draw(scene, size), said.text


def styled(
    style: brush.Style, seed: int, count: int, regular: int, size: int = 128
) -> Iterable[tuple[Image.Image, str]]:
    """Yield `count` pictures in a style, their captions with its trigger, and `regular` without.

    The regular ones are flat, so that a fine-tune keeps the style behind its trigger.
    """
    for number in range(count):
        scene = scenes.scene(seed, number)
        yield brush.draw(scene, size, style), f"{captions.plain(scene)}, {TRIGGERS[style]}"
    for number in range(count, count + regular):
        scene = scenes.scene(seed, number)
        yield brush.draw(scene, size), captions.plain(scene)
