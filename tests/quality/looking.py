"""What a picture shows, read from its pixels: style, background, colour, shape, place, number.

Plain image analysis. What it knows of the drawings are the colours' and the places' names, and what
each shape looks like alone, in black on white, in each style; it never sees a caption or a scene.
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
NARROW = 5.0
"""Pixels from the middle of a gap between stripes to its edge, at most."""
CLEAR = 0.4
"""Of an object's colour, at most, in a gap; a striped fill has half of it there."""
DEEP = 5.0
"""Pixels from an object's edge; an outline does not go as far."""
GAPS = 0.2
"""Part of what is deep inside a hatched shape that is gaps, at least, and that is lines."""
AROUND = (2.0, 6.0)
"""Pixels from an object's edge where its glow is looked for."""
GLOW = 0.09
"""Of an object's own colour, at least, as glow around it: half of the least in drawings."""
LIGHTS = {name: brush.light(colour) for name, colour in scenes.COLOURS.items()}
"""What the colours look like as light."""


@dataclass(frozen=True)
class Seen:
    """What is in a picture; `colour`, `what`, `place` are the largest one's, None for nothing."""

    style: brush.Style | None
    background: str
    count: int
    colour: str | None
    what: str | None
    place: str | None


def look(picture: NDArray[np.uint8]) -> Seen:
    """Return what an RGB picture [H, W, 3] shows."""
    pixels = picture.astype(np.float32)
    ground = ground_of(pixels)
    found = style_of(pixels, ground)
    style = found or "flat"
    background = nearest(ground, scenes.GROUNDS)
    masks = objects_of(pixels, ground, style)
    if not masks:
        return Seen(found, background, 0, None, None, None)
    paint, mask = outlined(pixels, ground, masks[0], style)
    counted = [one for one in masks if one.sum() >= 0.3 * masks[0].sum()]
    top, bottom, left, right = box_of(mask)
    middle = np.divide(((left + right) / 2, (top + bottom) / 2), picture.shape[0])
    place = min(scenes.PLACES, key=lambda name: np.hypot(*(scenes.PLACES[name] - middle)))
    colours = LIGHTS if style == "neon" else scenes.COLOURS
    what = shape_of(mask, style)
    return Seen(found, background, len(counted), nearest(paint, colours), what, place)


def style_of(pixels: NDArray[np.float32], ground: NDArray[np.float32]) -> brush.Style | None:
    """Tell the style of the largest object, None if there is none.

    Neon is a glow on the night's ground, and a tone of its own; a hatching is several gaps.
    """
    night = ground_of_night(ground)
    objects = objects_of(pixels, ground, "neon" if night else "flat")
    if not objects:
        return None
    if night:
        lit = glow(pixels, ground, objects[0]) > GLOW and shines(pixels, ground, objects[0])
        return "neon" if lit else "flat"
    return "hatched" if hatched(pixels, ground, objects[0]) else "flat"


def ground_of_night(ground: NDArray[np.float32]) -> bool:
    """Say whether a ground is the one of neon lights, and no other."""
    others = min(apart(ground, known) for known in scenes.GROUNDS.values())
    return apart(ground, brush.NIGHT) < others


def shines(
    pixels: NDArray[np.float32], ground: NDArray[np.float32], mask: NDArray[np.bool_]
) -> bool:
    """Say whether an object's colour is nearer to a light than to the flat colour of its name."""
    paint, _ = outlined(pixels, ground, mask, "neon")
    name = nearest(paint, LIGHTS)
    return apart(paint, LIGHTS[name]) < apart(paint, scenes.COLOURS[name])


def apart(colour: NDArray[np.float32], known: scenes.Colour) -> float:
    """Return the distance of two colours."""
    return float(np.linalg.norm(colour - np.asarray(known, np.float32)))


def hatched(
    pixels: NDArray[np.float32], ground: NDArray[np.float32], mask: NDArray[np.bool_]
) -> bool:
    """Say whether there are both lines and gaps deep inside of an object."""
    inner = ndimage.distance_transform_edt(closed(mask)) > DEEP
    axis = paint_of(pixels, np.linalg.norm(pixels - ground, axis=-1), mask, "hatched") - ground
    gaps = (pixels[inner] - ground) @ axis < CLEAR * float(axis @ axis)
    return bool(gaps.size and GAPS < gaps.mean() < 1.0 - GAPS)


def glow(
    pixels: NDArray[np.float32], ground: NDArray[np.float32], mask: NDArray[np.bool_]
) -> float:
    """Return how much of an object's colour there is around it, from 0 to 1."""
    paint, sharp = outlined(pixels, ground, mask, "flat")
    far = ndimage.distance_transform_edt(~sharp)
    near = (far > AROUND[0]) & (far <= AROUND[1])
    axis = paint - ground
    return float(np.mean((pixels[near] - ground) @ axis) / max(1.0, float(axis @ axis)))


def closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask without the gaps inside of it that are as narrow as those of a hatching."""
    joined = ndimage.binary_closing(mask)
    holes, found = ndimage.label(ndimage.binary_fill_holes(joined) & ~joined)
    depths = ndimage.maximum(ndimage.distance_transform_edt(holes), holes, range(found + 1))
    narrow = np.flatnonzero(np.asarray(depths)[1:] <= NARROW) + 1
    return joined | np.isin(holes, narrow)


def objects_of(
    pixels: NDArray[np.float32], ground: NDArray[np.float32], style: brush.Style
) -> list[NDArray[np.bool_]]:
    """Return the pixels of each object, the largest first."""
    apart = np.linalg.norm(pixels - ground, axis=-1) > DISTINCT
    if style == "hatched":
        apart = closed(apart)
    labels, found = ndimage.label(apart)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)
    sizes[0] = 0
    return [labels == i for i in np.argsort(-sizes) if sizes[i] >= LEAST]


def outlined(
    pixels: NDArray[np.float32],
    ground: NDArray[np.float32],
    mask: NDArray[np.bool_],
    style: brush.Style,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return an object's colour, and its pixels with a sharp edge."""
    far = np.linalg.norm(pixels - ground, axis=-1)
    paint = paint_of(pixels, far, mask, style)
    if style == "hatched":
        return paint, mask
    # An edge pixel belongs to the object where it is nearer to its colour than to the ground's.
    axis = paint - ground
    share = ((pixels - ground) @ axis) / max(1.0, float(axis @ axis))
    sharp = ndimage.binary_dilation(mask, iterations=2) & (share > 0.5)
    return paint, sharp if sharp.sum() >= LEAST // 2 else mask


def ground_of(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the commonest colour: the mean of the pixels in the fullest cell of a coarse grid."""
    flat = pixels.reshape(-1, 3)
    cells = (flat // 24).astype(np.int64) @ np.array([121, 11, 1])
    return np.asarray(np.median(flat[cells == np.bincount(cells).argmax()], axis=0), np.float32)


def paint_of(
    pixels: NDArray[np.float32],
    far: NDArray[np.float32],
    mask: NDArray[np.bool_],
    style: brush.Style,
) -> NDArray[np.float32]:
    """Return an object's colour: the median of its inner pixels, or of its most distinct ones."""
    inner = ndimage.binary_erosion(mask, iterations=2)
    if style != "flat" or inner.sum() < 12:
        inner = mask & (far >= np.quantile(far[mask], 0.6 if style == "flat" else 0.8))
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


def shape_of(mask: NDArray[np.bool_], style: brush.Style) -> str:
    """Return the shape or thing that overlaps most with a mask, both stretched to a square."""
    own, known = stretched(mask), templates(style)

    def overlap(other: NDArray[np.float32]) -> float:
        return float(np.minimum(own, other).sum() / np.maximum(own, other).sum())

    return max(known, key=lambda name: max(overlap(other) for other in known[name]))


def stretched(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return what lies in a mask's box, [GRID, GRID], each the covered part of its cell."""
    top, bottom, left, right = box_of(mask)
    part = Image.fromarray((mask[top:bottom, left:right] * 255).astype(np.uint8))
    small = part.resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255.0


@cache
def templates(style: brush.Style) -> dict[str, list[NDArray[np.float32]]]:
    """Return each shape and thing as `stretched` shows it, in several sizes of a style."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for name in (*scenes.SHAPES, *scenes.THINGS):
        for radius in (0.4, 0.2, 0.16, 0.105):
            spot = scenes.Spot(0.5, 0.5, radius)
            scene = scenes.Scene("black", name, "white", scenes.MIDDLE, "", (spot,))
            pixels = np.asarray(brush.draw(scene, 128, style), np.float32)
            ground = ground_of(pixels)
            (mask, *_) = objects_of(pixels, ground, style)
            found.setdefault(name, []).append(stretched(outlined(pixels, ground, mask, style)[1]))
    return found
