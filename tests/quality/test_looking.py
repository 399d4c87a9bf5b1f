"""The measure itself: what it reads from drawings that it never saw, and that it can be wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from looking import look
from PIL import Image, ImageDraw, ImageFilter

from jobs import draws
from jobs.tiny import brush, folders, scenes

pytestmark = pytest.mark.quality

COUNT = 1000


def held_out(kind: str, number: int, size: str = "") -> scenes.Scene:
    rng = draws.generator(5, 200, number)
    found = sorted(scenes.apart(kind))
    combination = found[int(rng.integers(len(found)))]
    background = list(scenes.BACKGROUNDS)[int(rng.integers(len(scenes.BACKGROUNDS)))]
    return scenes.compose(combination, background, rng, size=size)


@pytest.mark.parametrize("kind", ["shape", "thing"])
def test_drawings_set_apart_are_read(kind: str) -> None:
    right = {"style": 0, "colour": 0, "what": 0, "place": 0, "background": 0, "count": 0}
    for number in range(COUNT):
        scene = held_out(kind, number)
        seen = look(np.asarray(brush.draw(scene)))
        told = {"style": "flat", "colour": scene.colour, "what": scene.what, "place": scene.place}
        told |= {"background": scene.background, "count": len(scene.spots)}
        for name, value in told.items():
            right[name] += getattr(seen, name) == value
    print(kind, right)
    assert min(right.values()) >= 0.99 * COUNT, right


@pytest.mark.parametrize("style", ["hatched", "neon"])
def test_styles_are_told_and_what_is_drawn_in_them_is_read(style: brush.Style) -> None:
    right = {"style": 0, "colour": 0, "what": 0, "place": 0, "count": 0}
    every = (held_out("shape", number) for number in itertools.count())
    shown = (scene for scene in every if scene.what in folders.shapes(style))
    for scene in itertools.islice(shown, COUNT):
        seen = look(np.asarray(brush.draw(scene, 128, style)))
        told = {"style": style, "colour": scene.colour, "what": scene.what, "place": scene.place}
        for name, value in (told | {"count": 1}).items():
            right[name] += getattr(seen, name) == value
    print(style, right)
    assert min(right.values()) >= 0.99 * COUNT, right


@pytest.mark.parametrize("size", scenes.SIZES)
@pytest.mark.parametrize("fill", ["outlined", "striped"])
def test_what_the_base_paints_itself_is_no_hatching(fill: str, size: str) -> None:
    rng = draws.generator(5, 201, 0)
    pairs = itertools.product(scenes.COLOURS, scenes.ROOMY, scenes.BACKGROUNDS)
    found = [
        scenes.compose((colour, what, "left"), ground, rng, size=size, fill=fill)
        for colour, what, ground in pairs
    ]
    wrong = sum(look(np.asarray(brush.draw(scene))).style != "flat" for scene in found)
    assert wrong <= 0.02 * len(found)


@pytest.mark.parametrize("blur", [0, 2, 3, 4])
def test_a_blur_in_the_dark_is_no_neon(blur: int) -> None:
    rng = draws.generator(5, 202, 0)
    for colour, what in itertools.product(scenes.COLOURS, scenes.SHAPES):
        scene = scenes.compose((colour, what, "left"), "dark blue", rng)
        picture = brush.draw(scene).filter(ImageFilter.GaussianBlur(blur))
        assert look(np.asarray(picture)).style != "neon", (colour, what)


def filled(colour: scenes.Colour, ground: scenes.Colour) -> Image.Image:
    image = Image.new("RGB", (128, 128), ground)
    ImageDraw.Draw(image).ellipse((44, 44, 84, 84), fill=colour)
    return image


def test_what_is_in_no_style_is_told_so() -> None:
    dark, black = filled((255, 110, 110), brush.NIGHT), Image.new("RGB", (128, 128), brush.NIGHT)
    assert look(np.asarray(dark)).style == "flat", "a filled shape in the night is no outline"
    assert look(np.asarray(black)).style is None
    assert look(np.asarray(Image.new("RGB", (128, 128), "white"))).style is None
    assert look(np.asarray(filled((214, 40, 40), (248, 248, 248)))).style == "flat"
    half = filled((214, 40, 40), (248, 248, 248))
    pen = ImageDraw.Draw(half)
    for start in range(40, 60, 8):
        pen.line((start, 40, start, 90), fill=(248, 248, 248), width=3)
    assert look(np.asarray(half)).style == "flat", "three stripes are no hatching"
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert look(noise).style != "neon"


def test_groups_set_apart_are_counted() -> None:
    right = 0
    for number in range(COUNT):
        scene = held_out("group", number)
        seen = look(np.asarray(brush.draw(scene)))
        right += (seen.count, seen.colour, seen.what) == (
            len(scene.spots), scene.colour, scene.what,
        )  # fmt: skip
    assert right >= 0.99 * COUNT
