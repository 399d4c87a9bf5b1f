"""The measure itself: what it reads from drawings that it never saw, and that it can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from looking import look

from jobs import draws
from jobs.tiny import brush, scenes

pytestmark = pytest.mark.quality

COUNT = 1000


def held_out(kind: str, number: int) -> scenes.Scene:
    rng = draws.generator(5, 200, number)
    found = sorted(scenes.apart(kind))
    combination = found[int(rng.integers(len(found)))]
    background = list(scenes.BACKGROUNDS)[int(rng.integers(len(scenes.BACKGROUNDS)))]
    return scenes.compose(combination, background, rng)


@pytest.mark.parametrize("kind", ["shape", "thing"])
def test_drawings_set_apart_are_read(kind: str) -> None:
    right = {"colour": 0, "what": 0, "place": 0, "background": 0, "count": 0}
    for number in range(COUNT):
        scene = held_out(kind, number)
        seen = look(np.asarray(brush.draw(scene)))
        told = {"colour": scene.colour, "what": scene.what, "place": scene.place}
        told |= {"background": scene.background, "count": len(scene.spots)}
        for name, value in told.items():
            right[name] += getattr(seen, name) == value
    print(kind, right)
    assert min(right.values()) >= 0.99 * COUNT, right


def test_groups_set_apart_are_counted() -> None:
    right = 0
    for number in range(COUNT):
        scene = held_out("group", number)
        seen = look(np.asarray(brush.draw(scene)))
        right += (seen.count, seen.colour, seen.what) == (
            len(scene.spots), scene.colour, scene.what,
        )  # fmt: skip
    assert right >= 0.99 * COUNT
