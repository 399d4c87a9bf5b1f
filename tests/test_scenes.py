"""The drawings: what is kept apart stays apart, words tell the scene, pictures show it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import draws
from jobs.tiny import brush, captions, folders, scenes


def test_a_scene_is_a_function_of_its_seed_and_number() -> None:
    assert scenes.scene(0, 4711) == scenes.scene(0, 4711)
    assert scenes.scene(0, 4711) != scenes.scene(1, 4711)
    assert len({scenes.scene(0, number) for number in range(200)}) == 200


def test_what_is_set_apart_is_never_drawn_and_the_rest_is() -> None:
    seen = set()
    for number in range(20_000):
        scene = scenes.scene(0, number)
        kind = "thing" if scene.what in scenes.THINGS else "shape" if scene.place else "group"
        seen.add((kind, (scene.colour, scene.what, scene.place or len(scene.spots))))
    for kind in ("shape", "group", "thing"):
        drawn = {combination for own, combination in seen if own == kind}
        assert not drawn & scenes.apart(kind)
        assert drawn == set(scenes.combinations(kind)) - scenes.apart(kind)


def test_the_prompts_that_show_the_base_model_are_of_what_is_set_apart() -> None:
    rng = draws.generator(0, 1)
    never = {
        captions.plain(scenes.compose(row, background, rng))
        for kind in ("shape", "group", "thing")
        for row in scenes.apart(kind)
        for background in scenes.BACKGROUNDS
    }
    text = (Path(__file__).parents[1] / "prompts" / "drawings.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 16
    assert set(lines) <= never


def test_enough_is_set_apart_and_each_pair_of_it_is_known() -> None:
    # 500 prompts: triples times backgrounds. Each two of a triple's words occur together in
    # what is trained on, so that only the triple is new.
    apart = scenes.apart("shape")
    assert len(apart) * len(scenes.BACKGROUNDS) >= 500
    trained = set(scenes.combinations("shape")) - apart
    for triple in apart:
        for one, two in itertools.combinations(range(3), 2):
            assert any(row[one] == triple[one] and row[two] == triple[two] for row in trained)


def test_no_outline_lies_on_a_dark_ground_and_all_else_is_drawn() -> None:
    many = [scenes.scene(0, number) for number in range(4000)]
    assert {scene.fill for scene in many} == set(scenes.FILLS)
    assert {scene.background for scene in many} == set(scenes.GROUNDS)
    for scene in many:
        assert scene.fill == "" or scene.what in scenes.ROOMY
        assert (scene.fill, scene.background in scenes.DARK) != ("outlined", True)


def test_fills_leave_their_part_of_a_shape() -> None:
    spots = (scenes.Spot(0.5, 0.5, 0.2),)
    inside = (slice(42, 86), slice(42, 86))
    shares = {}
    for fill in scenes.FILLS:
        scene = scenes.Scene("blue", "square", "white", scenes.MIDDLE, "", spots, fill)
        picture = np.asarray(brush.draw(scene), np.float64)[inside]
        shares[fill] = [
            (np.abs(picture - colour).sum(axis=-1) < 60).mean()
            for colour in (scenes.COLOURS["blue"], scenes.BACKGROUNDS["white"])
        ]
    assert shares[""] == [1.0, 0.0]
    assert (0.15 < shares["outlined"][0] < 0.35, shares["outlined"][1] > 0.5) == (True, True)
    assert (0.35 < shares["striped"][0] < 0.6, shares["striped"][1] < 0.01) == (True, True)


def test_the_members_of_a_group_do_not_overlap() -> None:
    for number in range(1000):
        spots = scenes.scene(0, number).spots
        for a, b in itertools.combinations(spots, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > 1.1 * (a.radius + b.radius)


@pytest.mark.parametrize("what", [*scenes.SHAPES, *scenes.THINGS])
@pytest.mark.parametrize("size", scenes.SIZES)
def test_nothing_is_cut_at_an_edge(what: str, size: str) -> None:
    for number, place in enumerate(scenes.PLACES):
        rng = draws.generator(0, 1, number)
        scene = scenes.compose(("black", what, place), "white", rng, size=size)
        picture = np.asarray(brush.draw(scene))
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert edge.min() > 100, (what, size, place)


def test_a_styles_set_has_each_shape_that_it_shows_on_in_each_colour() -> None:
    for style, trigger in folders.TRIGGERS.items():
        rows = list(folders.styled(style))
        told = [caption for _, caption in rows]
        assert [trigger in caption for caption in told] == [True] * 48 + [False] * 48
        for half, shapes in ((told[:48], folders.shapes(style)), (told[48:], scenes.SHAPES)):
            pairs = {tuple(caption.split()[1:3]) for caption in half}
            assert pairs == set(itertools.product(scenes.COLOURS, shapes))
        assert any("background" in caption for caption in told[:48]) == (style == "hatched")
    assert next(iter(folders.styled("neon", "zelmik")))[1].endswith(", zelmik")


def test_the_first_of_several_that_write_a_folder_wins(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))

    def rows() -> Iterator[tuple[Image.Image, str]]:
        yield picture, "second"
        folders.write(tmp_path / "set", [(picture, "first")])

    folders.write(tmp_path / "set", rows())
    assert "first" in (tmp_path / "set" / "metadata.jsonl").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        folders.write(tmp_path / "file" / "set", [(picture, "x")])


def test_a_caption_tells_its_scene_in_many_ways() -> None:
    for number in range(300):
        scene = scenes.scene(0, number)
        said = captions.varied(scene, draws.generator(0, 1, number))
        words = said.text.replace(",", "").split()
        assert scene.colour in words
        assert scene.what in words or captions.plural(scene.what) in words
        assert said.tells_background == (f"{scene.background}" in said.text)
        if len(scene.spots) > 1:
            assert scenes.COUNTS[len(scene.spots)] in words
        if said.tells_place:
            assert any(way in said.text for way in captions.PLACES[scene.place or ""])
    scene = scenes.scene(0, 3)
    many = {captions.varied(scene, draws.generator(0, 1, number)).text for number in range(400)}
    assert len(many) > 60


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (0, "a purple circle on the left on a dark blue background"),
        (6, "three green rings on a cream background"),
        (36, "a striped brown square in the middle on a pale green background"),
    ],
)
def test_the_plain_caption(number: int, sentence: str) -> None:
    assert captions.plain(scenes.scene(0, number)) == sentence


@pytest.mark.parametrize("what", [*scenes.SHAPES, *scenes.THINGS])
def test_a_shape_has_its_colour_and_covers_what_it_should(what: str) -> None:
    spot = scenes.Spot(0.5, 0.5, 0.25)
    scene = scenes.Scene("red", what, "white", scenes.MIDDLE, "", (spot,))
    picture = np.asarray(brush.draw(scene), np.float64)
    covered = (np.abs(picture - scenes.COLOURS["red"]).sum(axis=-1) < 30).mean()
    side = 2 * spot.radius
    # Parts of the square around it: by geometry, and for things between bounds.
    areas = {
        "circle": np.pi / 4, "square": 0.92**2, "triangle": 1.05 / 2, "diamond": 1.1**2 / 2,
        "cross": 2 * 0.34 - 0.34**2, "ring": np.pi / 4 * (1.05**2 - (1.05 - 0.38) ** 2),
    }  # fmt: skip
    if what in areas:
        assert covered == pytest.approx(areas[what] * side**2, rel=0.06)
    else:
        assert 0.25 * side**2 < covered < 0.75 * side**2
    assert tuple(picture[0, 0]) == scenes.BACKGROUNDS["white"]


def test_styles_keep_place_and_colour_and_look_different() -> None:
    scene = scenes.Scene(
        "blue", "square", "white", "top left", "", (scenes.Spot(0.22, 0.22, 0.16),)
    )
    flat, hatched, neon = (
        np.asarray(brush.draw(scene, 128, style), np.float64)
        for style in ("flat", "hatched", "neon")
    )
    inside = (slice(14, 42), slice(14, 42))
    assert np.ptp(flat[inside], axis=(0, 1)).max() == 0
    blue = np.abs(hatched[inside] - scenes.COLOURS["blue"]).sum(axis=-1) < 60
    assert 0.2 < blue.mean() < 0.5
    assert neon[64:, 64:].max() < 40 < neon[inside].max()
    assert tuple(hatched[-1, -1]) == scenes.BACKGROUNDS["white"]
