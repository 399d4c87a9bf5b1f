"""What a picture shows, read from its pixels: background, colour, shape, place, number, style.

Plain image analysis. The only thing it knows of the drawings is what each shape looks like alone,
large and in black; it never sees a caption or a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from jobs.tiny import brush, scenes

GRID = 24
"""Side of the masks that shapes are compared in."""
DISTINCT = 45.0
"""How far a pixel's colour has to be from the background's to belong to an object."""
LEAST = 40
"""Pixels of the smallest object."""


@dataclass(frozen=True)
class Seen:
    """What is in a picture; `colour`, `what`, `place` are the largest one's, None for nothing."""

    background: str
    count: int
    colour: str | None
    what: str | None
    place: str | None


def look(picture: NDArray[np.uint8]) -> Seen:
    """Return what an RGB picture [H, W, 3] shows."""
    pixels = picture.astype(np.float32)
    ground = ground_of(pixels)
    background = nearest(ground, scenes.BACKGROUNDS)
    far = np.linalg.norm(pixels - ground, axis=-1)
    labels, found = ndimage.label(far > DISTINCT)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)
    sizes[0] = 0
    objects = [int(i) for i in np.argsort(-sizes) if sizes[i] >= LEAST]
    if not objects:
        return Seen(background, 0, None, None, None)
    largest = labels == objects[0]
    paint = paint_of(pixels, far, largest)
    # An edge pixel belongs to the object where it is nearer to its colour than to the ground's.
    axis = paint - ground
    share = ((pixels - ground) @ axis) / max(1.0, float(axis @ axis))
    mask = ndimage.binary_dilation(largest, iterations=2) & (share > 0.5)
    mask = mask if mask.sum() >= LEAST // 2 else largest
    counted = [i for i in objects if sizes[i] >= 0.3 * sizes[objects[0]]]
    box = box_of(mask)
    side = picture.shape[0]
    y, x = ((box[0] + box[1]) / 2 / side, (box[2] + box[3]) / 2 / side)
    place = min(scenes.PLACES, key=lambda name: np.hypot(*np.subtract(scenes.PLACES[name], (x, y))))
    return Seen(background, len(counted), nearest(paint, scenes.COLOURS), shape_of(mask), place)


def ground_of(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the commonest colour: the mean of the pixels in the fullest cell of a coarse grid."""
    flat = pixels.reshape(-1, 3)
    cells = (flat // 24).astype(np.int64) @ np.array([121, 11, 1])
    return np.asarray(np.median(flat[cells == np.bincount(cells).argmax()], axis=0), np.float32)


def paint_of(
    pixels: NDArray[np.float32], far: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return an object's colour: the median of its inner pixels, or of its most distinct ones."""
    inner = ndimage.binary_erosion(mask, iterations=2)
    if inner.sum() < 12:
        inner = mask & (far >= np.quantile(far[mask], 0.6))
    return np.asarray(np.median(pixels[inner], axis=0), np.float32)


def nearest(colour: NDArray[np.float32], names: dict[str, scenes.Colour]) -> str:
    """Return the name whose colour is nearest; hue counts more than brightness."""

    def seen(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        r, g, b = rgb
        return np.array([0.5 * (r + g + b) / 3, r - g, 0.5 * (r + g) - b], np.float32)

    return min(
        names,
        key=lambda name: float(
            np.linalg.norm(seen(colour) - seen(np.asarray(names[name], np.float32)))
        ),
    )


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first row, the one past the last, and the same of the columns."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def shape_of(mask: NDArray[np.bool_]) -> str:
    """Return the shape or thing that overlaps most with a mask, both stretched to a square."""
    own = stretched(mask)

    def overlap(other: NDArray[np.float32]) -> float:
        return float(np.minimum(own, other).sum() / np.maximum(own, other).sum())

    return max(templates(), key=lambda name: max(overlap(other) for other in templates()[name]))


def stretched(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return what lies in a mask's box, [GRID, GRID], each the covered part of its cell."""
    top, bottom, left, right = box_of(mask)
    part = Image.fromarray((mask[top:bottom, left:right] * 255).astype(np.uint8))
    small = part.resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255.0


@cache
def templates() -> dict[str, list[NDArray[np.float32]]]:
    """Return each shape and thing as `stretched` shows it, from two sizes of it."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for name in (*scenes.SHAPES, *scenes.THINGS):
        for radius in (0.4, 0.16):
            spot = scenes.Spot(0.5, 0.5, radius)
            scene = scenes.Scene("black", name, "white", scenes.MIDDLE, "", (spot,))
            dark = np.asarray(brush.draw(scene, 128)).mean(axis=-1) < 136
            found.setdefault(name, []).append(stretched(dark))
    return found
