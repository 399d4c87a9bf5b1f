"""From file to array: every kind of picture looks as it should, and says what was cut out of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from jobs import pixels


def saved(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    buffer.seek(0)
    return buffer


def seen(image: Image.Image, form: str = "PNG", **options: object) -> np.ndarray:
    return np.asarray(pixels.read(saved(image, form, **options)))


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)


def test_plain_colours_stay() -> None:
    assert np.array_equal(seen(Image.fromarray(COLOURS)), COLOURS)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_laid_onto_white(mode: str) -> None:
    levels = [0, 0, 255, 255] if mode == "RGBA" else [0, 0]
    clear, half, solid = ((*levels[: len(mode) - 1], alpha) for alpha in (0, 128, 255))
    image = Image.new(mode, (3, 1))
    for place, value in enumerate((clear, half, solid)):
        image.putpixel((place, 0), value)
    found = seen(image)[0]
    colour = np.array([0, 0, 255] if mode == "RGBA" else [0, 0, 0])
    expected = [colour * a + 255 * (1 - a) for a in (0, 128 / 255, 1)]
    assert np.abs(found - np.array(expected)).max() <= 1


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert seen(image).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert seen(image, transparency=0).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk_is_converted() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    found = seen(image, "JPEG", quality=100)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 3


def test_sixteen_bits_become_eight() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    found = seen(Image.fromarray(ramp))
    assert np.abs(found[..., 0].astype(int).ravel() - np.arange(256)).max() <= 1
    assert np.array_equal(found[..., 0], found[..., 2])
    with pytest.raises(ValueError, match="floating-point"):
        pixels.read(saved(Image.fromarray(ramp.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_picture(turn: int) -> None:
    """Orientation as the EXIF standard tells it: how row and column 0 lie in the scene."""
    meant = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: meant, 2: meant[:, ::-1], 3: meant[::-1, ::-1], 4: meant[::-1], 5: meant.T,
        6: np.rot90(meant, 1), 7: meant[::-1, ::-1].T, 8: np.rot90(meant, -1),
    }[turn]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    found = seen(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(found[..., 0], meant)


def test_one_pixel_fills_the_view_and_is_told_as_one() -> None:
    (view,) = pixels.views(Image.new("RGB", (1, 1), "red"), 16, [pixels.CENTRE], flip=False)
    assert view.pixels.shape == (3, 16, 16)
    assert (view.pixels[0] == 1).all()
    assert (view.pixels[1:] == -1).all()
    assert view.time_ids.tolist() == [1, 1, 0, 0, 16, 16]


def ramp(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))


def test_a_crop_shows_what_its_numbers_say() -> None:
    image, size = ramp(100, 40), 40  # scale 1: the arithmetic can be read off the pixels
    places = [(0.0, 0.0), (0.999, 0.5), (0.5, 0.0)]
    views = pixels.views(image, size, [*places, pixels.CENTRE], flip=False)
    assert [view.time_ids.tolist() for view in views] == [
        [40, 100, 0, left, 40, 40] for left in (0, 60, 30, 30)
    ]
    for view in views:
        left = view.time_ids[3]
        columns = (view.pixels[0] + 1) * 127.5
        assert np.allclose(columns, left + np.arange(size)[None, :], atol=1e-3)
        assert np.allclose((view.pixels[1] + 1) * 127.5, np.arange(size)[:, None], atol=1e-3)


def test_every_crop_can_be_drawn_and_none_leaves_the_picture() -> None:
    image = ramp(40, 44)
    places = [(0.0, part) for part in np.linspace(0, 0.9999, 50)]
    tops = [view.time_ids[2] for view in pixels.views(image, 40, places, flip=False)]
    assert set(tops) == {0, 1, 2, 3, 4}


def test_a_mirror_image_says_where_it_lies_in_the_mirrored_picture() -> None:
    image = ramp(100, 40)
    plain, mirrored = pixels.views(image, 40, [(0.2, 0.0)], flip=True)
    assert np.array_equal(mirrored.pixels, plain.pixels[:, :, ::-1])
    whole = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left = int(mirrored.time_ids[3])
    expected = np.asarray(whole)[:, left : left + 40].transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(mirrored.pixels, expected, atol=1e-6)
    assert (plain.time_ids[3], left) == (12, 48)
