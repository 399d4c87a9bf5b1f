"""Owns how a scene looks: in flat colours, or in one of two styles. Must not choose words.

The pictures are drawn by this project, and are free to use under its licence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from jobs.tiny.scenes import COLOURS, GROUNDS, Colour, Scene

Style = Literal["flat", "hatched", "neon"]
FINE = 4
"""Drawn this many times as large and scaled down: Pillow's shapes have no anti-aliasing."""
STRIPES, LINE = 16, 4
"""Pixels from one stripe to the next, and of the width of a hatching's, at 128 a side.

A VAE can only tell what its latents tell, one for each 8 pixels: stripes as narrow as that are the
same in each, and come back as an even tone.
"""
NIGHT: Colour = (14, 14, 34)
"""What neon lights shine on."""
HALO = 6
"""Radius in pixels, at 128 a side, of the blur that is a neon light's glow."""
_DARK: Colour = (60, 45, 40)

Box = tuple[float, float, float]
"""Centre and half the width, in pixels."""
Pen = ImageDraw.ImageDraw


def draw(scene: Scene, size: int = 128, style: Style = "flat") -> Image.Image:
    """Return the scene as an RGB picture of `size` x `size` pixels."""
    side = size * FINE
    shapes = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(shapes)
    boxes = [(spot.x * side, spot.y * side, spot.radius * side) for spot in scene.spots]
    for box in boxes:
        _OUTLINES[scene.what](pen, box)
    ground, colour = GROUNDS[scene.background], COLOURS[scene.colour]
    if style == "neon":
        return _neon(shapes, colour).reduce(FINE)
    unit = side // 128
    if style == "hatched":
        line = _edge(shapes, 2 * unit)
        shapes = ImageChops.lighter(line, ImageChops.multiply(shapes, _stripes(side, LINE * unit)))
    elif scene.fill == "outlined":
        shapes = _edge(shapes, 4 * unit)
    image = Image.new("RGB", (side, side), ground)
    image.paste(colour, mask=shapes)
    if style == "flat" and scene.fill == "striped":
        lighter = tuple((a + b) // 2 for a, b in zip(colour, ground, strict=True))
        image.paste(lighter, mask=ImageChops.multiply(shapes, _stripes(side, 6 * unit)))
    if style == "flat" and scene.what in _DETAILS:
        for box in boxes:
            _DETAILS[scene.what](ImageDraw.Draw(image), box, ground)
    return image.reduce(FINE)


def _stripes(side: int, width: int) -> Image.Image:
    """Return a mask of stripes that rise to the right, all over a picture."""
    stripes = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(stripes)
    for start in range(0, 2 * side, STRIPES * side // 128):
        pen.line((start - side, side, start, 0), fill=255, width=width)
    return stripes


def _edge(shapes: Image.Image, width: int) -> Image.Image:
    """Return the inner edge of a mask, `width` pixels wide."""
    # A blurred edge is at a half on the line itself, and falls with the distance from it.
    inner = shapes.filter(ImageFilter.GaussianBlur(width)).point(lambda v: 255 if v > 215 else 0)
    return ImageChops.subtract(shapes, inner)


def light(colour: Colour) -> Colour:
    """Return a colour as neon lights have it; black is a grey one."""
    lift = max(70, 150 - max(colour))
    r, g, b = (min(255, lift + value) for value in colour)
    return r, g, b


def _neon(shapes: Image.Image, colour: Colour) -> Image.Image:
    """Return shapes that glow in the dark, in a brighter tone of the colour."""
    image = Image.new("RGB", shapes.size, NIGHT)
    halo = shapes.filter(ImageFilter.GaussianBlur(HALO * shapes.width // 128))
    image.paste(light(colour), mask=halo)
    image.paste(light(colour), mask=shapes)
    return image


def _circle(pen: Pen, box: Box) -> None:
    x, y, r = box
    pen.ellipse((x - r, y - r, x + r, y + r), fill=255)


def _square(pen: Pen, box: Box) -> None:
    x, y, r = box
    r *= 0.92
    pen.rectangle((x - r, y - r, x + r, y + r), fill=255)


def _triangle(pen: Pen, box: Box) -> None:
    x, y, r = box
    pen.polygon([(x, y - r), (x + 1.05 * r, y + r), (x - 1.05 * r, y + r)], fill=255)


def _diamond(pen: Pen, box: Box) -> None:
    x, y, r = box
    r *= 1.1
    pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=255)


def _cross(pen: Pen, box: Box) -> None:
    x, y, r = box
    bar = 0.34 * r
    pen.rectangle((x - r, y - bar, x + r, y + bar), fill=255)
    pen.rectangle((x - bar, y - r, x + bar, y + r), fill=255)


def _ring(pen: Pen, box: Box) -> None:
    x, y, r = box
    r *= 1.05
    pen.ellipse((x - r, y - r, x + r, y + r), outline=255, width=round(0.38 * r))


def _house(pen: Pen, box: Box) -> None:
    x, y, r = box
    pen.rectangle((x - 0.72 * r, y - 0.1 * r, x + 0.72 * r, y + 0.9 * r), fill=255)
    pen.polygon([(x, y - 0.95 * r), (x + r, y - 0.1 * r), (x - r, y - 0.1 * r)], fill=255)


def _house_details(pen: Pen, box: Box, ground: Colour) -> None:
    x, y, r = box
    pen.rectangle((x - 0.15 * r, y + 0.35 * r, x + 0.2 * r, y + 0.9 * r), fill=_DARK)
    for left in (-0.55, 0.32):
        corner, far = (x + left * r, y + 0.08 * r), (x + (left + 0.25) * r, y + 0.33 * r)
        pen.rectangle((corner, far), fill=ground)


def _tree(pen: Pen, box: Box) -> None:
    x, y, r = box
    pen.rectangle((x - 0.14 * r, y, x + 0.14 * r, y + r), fill=255)
    for dx, dy, part in ((0.0, -0.45, 0.52), (-0.42, -0.1, 0.42), (0.42, -0.1, 0.42)):
        _circle(pen, (x + dx * r, y + dy * r, part * r))


def _tree_details(pen: Pen, box: Box, _: Colour) -> None:
    x, y, r = box
    pen.rectangle((x - 0.14 * r, y + 0.3 * r, x + 0.14 * r, y + r), fill=_DARK)


def _face(pen: Pen, box: Box) -> None:
    _circle(pen, box)


def _face_details(pen: Pen, box: Box, ground: Colour) -> None:
    x, y, r = box
    for side in (-0.38, 0.38):
        cx, cy, eye = x + side * r, y - 0.25 * r, 0.16 * r
        pen.ellipse((cx - eye, cy - eye, cx + eye, cy + eye), fill=ground)
    mouth = (x - 0.55 * r, y - 0.45 * r, x + 0.55 * r, y + 0.6 * r)
    pen.arc(mouth, 25, 155, fill=ground, width=round(0.17 * r))


def _boat(pen: Pen, box: Box) -> None:
    x, y, r = box
    hull = [(x - r, y + 0.3 * r), (x + r, y + 0.3 * r), (x + 0.6 * r, y + 0.85 * r)]
    pen.polygon([*hull, (x - 0.6 * r, y + 0.85 * r)], fill=255)
    mast, low = x + 0.05 * r, y + 0.12 * r
    pen.polygon([(mast, y - r), (x + 0.8 * r, low), (mast, low)], fill=255)
    pen.rectangle((x - 0.08 * r, y - r, x + 0.05 * r, y + 0.3 * r), fill=255)


def _boat_details(pen: Pen, box: Box, _: Colour) -> None:
    x, y, r = box
    pen.rectangle((x - 0.08 * r, y - r, x + 0.05 * r, y + 0.3 * r), fill=_DARK)


_OUTLINES: dict[str, Callable[[Pen, Box], None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "diamond": _diamond,
    "cross": _cross, "ring": _ring, "house": _house, "tree": _tree, "face": _face, "boat": _boat,
}  # fmt: skip
_DETAILS: dict[str, Callable[[Pen, Box, Colour], None]] = {
    "house": _house_details, "tree": _tree_details, "face": _face_details, "boat": _boat_details,
}  # fmt: skip
