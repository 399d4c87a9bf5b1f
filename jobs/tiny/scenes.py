"""Owns what the drawings can show, and which combinations no model of ours is trained on. Pure.

A scene is a function of (seed, number), so that any part of an endless set can be drawn alone.
Must not draw (see brush) or import MindSpore.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

from jobs import draws

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 215, 45),
    "green": (45, 160, 70),
    "blue": (40, 90, 205),
    "purple": (135, 55, 170),
    "black": (25, 25, 25),
    "brown": (120, 72, 38),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
THINGS = ("house", "tree", "face", "boat")
PLACES: dict[str, tuple[float, float]] = {
    f"{row} {column}".strip(): (x, y)
    for row, y in (("top", 0.22), ("", 0.5), ("bottom", 0.78))
    for column, x in (("left", 0.22), ("", 0.5), ("right", 0.78))
}
"""Centres as parts of the side, by name; the middle's name is empty (see MIDDLE)."""
MIDDLE = "middle"
PLACES[MIDDLE] = PLACES.pop("")
BACKGROUNDS: dict[str, Colour] = {
    "white": (248, 248, 248),
    "grey": (185, 185, 185),
    "pink": (250, 200, 215),
    "pale blue": (195, 222, 250),
    "pale green": (200, 238, 200),
    "cream": (248, 236, 205),
}
DARK: dict[str, Colour] = {"dark blue": (26, 30, 84)}
GROUNDS = BACKGROUNDS | DARK
"""All that a scene can lie on; what is measured, and fine-tuned on, lies on the light ones."""
FILLS = ("", "outlined", "striped")
ROOMY = ("circle", "square", "triangle", "diamond")
"""Shapes whose outline leaves something inside."""
COUNTS = {2: "two", 3: "three", 4: "four"}
SIZES = {"small": 0.105, "": 0.16, "large": 0.215}
"""Half the width as a part of the side, by the word for it."""

APART = 0.2
"""Part of the combinations of each kind that is kept for tests."""
CELLS = tuple(itertools.product((0.2, 0.5, 0.8), repeat=2))
"""Where the members of a group can lie."""
MEMBER = 0.11
"""Half the width of one of several."""
WIDEST = 1.14
"""How far the widest outline (brush) goes, in radii, and a little room."""

_KINDS = (
    ("shape", 0.46), ("sized", 0.08), ("group", 0.12), ("thing", 0.12), ("outlined", 0.12),
    ("striped", 0.1),
)  # fmt: skip
_AT_NIGHT = 0.15
"""Part of the scenes on dark grounds. No outline lies on one: neon lights are for a fine-tuning."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one object lies: its centre and half its width, as parts of the picture's side."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What one drawing shows: one object somewhere, or several of one kind anywhere."""

    colour: str
    what: str
    """One of SHAPES or THINGS."""
    background: str
    """One of GROUNDS."""
    place: str | None
    """One of PLACES; none for a group."""
    size: str
    """One of SIZES."""
    spots: tuple[Spot, ...]
    fill: str = ""
    """One of FILLS; things and groups have none but the first."""


def combinations(kind: str) -> list[tuple[Any, ...]]:
    """Return all (colour, what, place), or of a `group` all (colour, what, count)."""
    if kind == "group":
        return list(itertools.product(COLOURS, SHAPES, COUNTS))
    return list(itertools.product(COLOURS, THINGS if kind == "thing" else SHAPES, PLACES))


@cache
def apart(kind: str) -> frozenset[tuple[Any, ...]]:
    """Return the combinations of a kind (shape, group, thing) that are kept for tests.

    They are never drawn by `scene`, on no background, in no size.
    """
    found = combinations(kind)
    order = draws.generator(0, draws.TINY_APART, len(found)).permutation(len(found))
    return frozenset(found[index] for index in order[: round(APART * len(found))])


def scene(seed: int, number: int) -> Scene:
    """Return scene `number` of the endless set of a seed; none of the combinations set apart."""
    rng = draws.generator(seed, draws.TINY_SCENE, number)
    names = [name for name, _ in _KINDS]
    kind = names[int(rng.choice(len(names), p=[part for _, part in _KINDS]))]
    seen = _kept(kind if kind in ("group", "thing") else "shape")
    if kind in FILLS:
        seen = tuple(row for row in seen if row[1] in ROOMY)
    combination = seen[int(rng.integers(len(seen)))]
    size = ("small", "large")[int(rng.integers(2))] if kind == "sized" else ""
    dark = rng.random() < _AT_NIGHT and kind != "outlined"
    grounds = list(DARK if dark else BACKGROUNDS)
    background = grounds[int(rng.integers(len(grounds)))]
    fill = kind if kind in FILLS else ""
    return compose(combination, background, rng, size=size, fill=fill)


@cache
def _kept(kind: str) -> tuple[tuple[Any, ...], ...]:
    return tuple(row for row in combinations(kind) if row not in apart(kind))


def compose(
    combination: tuple[Any, ...], background: str, rng: Any, *, size: str = "", fill: str = "",
    jitter: float = 0.02,
) -> Scene:  # fmt: skip
    """Return the scene of a combination (see `combinations`), its spots drawn from `rng`.

    Args:
        combination: (colour, what, place), or (colour, what, count).
        background: one of GROUNDS.
        rng: NumPy generator.
        size: one of SIZES.
        fill: one of FILLS.
        jitter: how far an object may lie from its place, each way, as a part of the side.
    """
    colour, what, where = combination
    if isinstance(where, int):
        cells = [CELLS[index] for index in rng.permutation(len(CELLS))[:where]]
        radius, place = MEMBER, None
    else:
        cells, radius, place = [PLACES[where]], SIZES[size], where
    if what in THINGS:
        radius *= 1.25
    spots = []
    for middle in cells:
        shifts, own = rng.uniform(-jitter, jitter, 2), radius * rng.uniform(0.94, 1.06)
        least = WIDEST * own  # no outline is cut at an edge
        x, y = (min(max(c + d, least), 1 - least) for c, d in zip(middle, shifts, strict=True))
        spots.append(Spot(x, y, own))
    return Scene(colour, what, background, place, size, tuple(spots), fill)
