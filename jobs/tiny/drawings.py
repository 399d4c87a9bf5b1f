"""Owns the captioned drawings of `--data tiny`: shapes, colours, places. Must not import MindSpore.

The pictures are drawn by this project, from a seed, and are free to use under its licence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 210, 50),
    "green": (50, 160, 70),
    "blue": (40, 90, 200),
    "purple": (130, 60, 170),
    "black": (25, 25, 25),
    "brown": (120, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
PLACES: dict[str, tuple[float, float]] = {
    "in the top left corner": (0.25, 0.25),
    "at the top": (0.5, 0.25),
    "in the top right corner": (0.75, 0.25),
    "on the left": (0.25, 0.5),
    "in the middle": (0.5, 0.5),
    "on the right": (0.75, 0.5),
    "in the bottom left corner": (0.25, 0.75),
    "at the bottom": (0.5, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "grey": (190, 190, 190),
    "pink": (250, 200, 215),
    "pale blue": (200, 225, 250),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What one drawing shows, in words."""

    colour: str
    shape: str
    place: str
    background: str

    @property
    def caption(self) -> str:
        """The scene as a sentence."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return (
            f"{article} {self.colour} {self.shape} {self.place} on a {self.background} background"
        )


def scenes(count: int, seed: int) -> Iterator[Scene]:
    """Yield `count` scenes; the same for the same seed, the first ones whatever the count."""
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(count):
        pick = [
            list(of)[int(rng.integers(len(of)))] for of in (COLOURS, SHAPES, PLACES, BACKGROUNDS)
        ]
        yield Scene(*pick)


def draw(scene: Scene, size: int = 128) -> Image.Image:
    """Return the drawing as an RGB picture of `size` x `size` pixels, smoothed at its edges."""
    # Drawn four times as large and scaled down: Pillow's shapes have no anti-aliasing of their own.
    side = size * 4
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    x, y = (int(part * side) for part in PLACES[scene.place])
    r = side * 5 // 32
    colour = COLOURS[scene.colour]
    match scene.shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        case "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        case "triangle":
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
        case "diamond":
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=colour)
        case "cross":
            bar = r // 3
            pen.rectangle((x - r, y - bar, x + r, y + bar), fill=colour)
            pen.rectangle((x - bar, y - r, x + bar, y + r), fill=colour)
        case "ring":
            pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=r // 3)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def write_folder(folder: Path, count: int = 64, seed: int = 0, size: int = 128) -> None:
    """Write an image folder: `00000.png`, ... and `metadata.jsonl` with a caption for each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, scene in enumerate(scenes(count, seed)):
        name = f"{index:05d}.png"
        draw(scene, size).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": scene.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
