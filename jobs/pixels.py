"""Owns a picture's way from its file to the trainer: upright, RGB, scaled, cropped, mirrored.

Must not import MindSpore or draw random numbers (see draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Place = tuple[float, float]
"""Where a crop lies, across and down: parts of the room there is, 0 to below 1."""
CENTRE: Place = (-1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Picture:
    """One view of a picture as the trainer needs it."""

    pixels: NDArray[np.float32]
    """[3, size, size] in -1..1."""
    time_ids: NDArray[np.float32]
    """Original height and width, top and left of the crop, target height and width: [6]
    (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""


def read(source: IO[bytes] | Any) -> Image.Image:
    """Return a picture as it is meant to be seen, in RGB.

    Turned as its EXIF says; what is transparent is laid onto white; 16 bits a channel become 8;
    CMYK and palettes are converted.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: it is not a picture.
    """
    with Image.open(source) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        image.load()
    if image.mode.startswith(("I", "F")):
        return _from_deep(image).convert("RGB")
    clear = image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info
    if not clear:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Return the 8-bit form of one channel of 16 bits or more; some readers clip it at 255.

    Raises:
        ValueError: floating point, whose white nobody knows.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    values = np.asarray(image).astype(np.int64)
    if values.max() > 255:
        values = values * 255 // 65535
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "L")


def views(image: Image.Image, size: int, places: Sequence[Place], *, flip: bool) -> list[Picture]:
    """Return the square crops of a picture whose shorter side is scaled to `size`.

    One for each place; with `flip` its mirror image follows each. The crop of a mirror image is
    told by its place in the mirrored picture, which is what it shows.
    """
    width, height = image.size
    scale = size / min(width, height)
    across, down = (max(size, round(side * scale)) - size for side in (width, height))
    found = []
    for place in places:
        left, top = _corner(place[0], across), _corner(place[1], down)
        # The scaled size first, then the crop: cut out before it is scaled, since a picture of
        # 1 x 20,000 pixels scaled as a whole would not fit any memory.
        box = (left / scale, top / scale, (left + size) / scale, (top + size) / scale)
        box = (*box[:2], min(box[2], width), min(box[3], height))
        cut = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(cut, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
        pixels = np.ascontiguousarray(pixels)
        found.append(Picture(pixels, _ids(height, width, top, left, size)))
        if flip:
            mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
            found.append(Picture(mirrored, _ids(height, width, top, across - left, size)))
    return found


def _corner(part: float, room: int) -> int:
    return room // 2 if part < 0 else int(part * (room + 1))


def _ids(height: int, width: int, top: int, left: int, size: int) -> NDArray[np.float32]:
    return np.asarray([height, width, top, left, size, size], np.float32)
