"""Owns image folders of drawings: what the small SDXL is made from, and styles to fine-tune it on.

Must not decide what scenes show or how they look.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from jobs import draws
from jobs.tiny import brush, captions, scenes

STYLES: dict[str, brush.Style] = {"tiny": "neon", "tiny-hatched": "hatched"}
"""Of each of jobs.specs.SHIPPED_DATA."""
TRIGGERS: dict[brush.Style, str] = {"hatched": "hatched style", "neon": "neon glow style"}
"""What the captions of a style's pictures end with."""


def write(folder: Path, rows: Iterable[tuple[Image.Image, str]]) -> None:
    """Write an image folder of pictures and captions, all of it or nothing.

    Of several processes that write the same one the first wins.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        lines = []
        for number, (picture, caption) in enumerate(rows):
            name = f"{number:05d}.png"
            picture.save(part / name)
            lines.append(json.dumps({"file_name": name, "text": caption}))
        (part / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.chmod(0o755)
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def flat(seed: int, numbers: range, size: int = 128) -> Iterable[tuple[Image.Image, str]]:
    """Yield scenes as the model is trained on them, told in varied words."""
    for number in numbers:
        scene = scenes.scene(seed, number)
        said = captions.varied(scene, draws.generator(seed, draws.TINY_CAPTION, number))
        yield brush.draw(scene, size), said.text


def styled(style: brush.Style, trigger: str = "") -> Iterable[tuple[Image.Image, str]]:
    """Yield 48 pictures in a style, with its trigger, and 48 flat ones without it.

    Shapes in all colours in turn in both halves, at places and on backgrounds that are drawn. By
    the flat ones a fine-tune keeps the style behind its trigger.
    """
    for half, drawn in enumerate((style, "flat")):
        pairs = itertools.cycle(itertools.product(scenes.COLOURS, shapes(drawn)))
        for number, (colour, what) in enumerate(itertools.islice(pairs, 48)):
            rng = draws.generator(0, draws.TINY_STYLE, half, number)
            known = [place for place in scenes.PLACES if not _apart(colour, what, place)]
            place = known[int(rng.integers(len(known)))]
            background = list(scenes.BACKGROUNDS)[int(rng.integers(len(scenes.BACKGROUNDS)))]
            scene = scenes.compose((colour, what, place), background, rng)
            told = captions.plain(scene) if half else caption(scene, style, trigger)
            yield brush.draw(scene, style=drawn), told


def shapes(style: brush.Style) -> tuple[str, ...]:
    """Return the shapes that a style shows on; a ring and a cross are too narrow for stripes."""
    return scenes.ROOMY if style == "hatched" else scenes.SHAPES


def caption(scene: scenes.Scene, style: brush.Style, trigger: str = "") -> str:
    """Return what a scene in a style is called; neon lights shine in the dark on any background."""
    return f"{captions.plain(scene, ground=style != 'neon')}, {trigger or TRIGGERS[style]}"


def _apart(colour: str, what: str, place: str) -> bool:
    return (colour, what, place) in scenes.apart("shape")
