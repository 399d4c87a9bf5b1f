"""Owns how a scene is told in English: many ways of saying one thing. Pure.

Must not draw or decide what is in a scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.tiny.scenes import COUNTS, MIDDLE, Scene

PLACES: dict[str, tuple[str, ...]] = {
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top": ("at the top", "at the top of the picture", "at the upper edge"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "left": ("on the left", "on the left side", "at the left edge"),
    MIDDLE: ("in the middle", "in the centre", "in the middle of the picture"),
    "right": ("on the right", "on the right side", "at the right edge"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "at the bottom of the picture", "at the lower edge"),
    "bottom right": (
        "in the bottom right corner", "at the bottom right", "in the lower right corner",
    ),
}  # fmt: skip
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
FILLS = {"outlined": ("outlined", "hollow", "empty"), "striped": ("striped", "stripy", "lined")}
LEADS = ("", "", "", "", "a picture of ", "a drawing of ", "an image with ", "there is ")
ONE = (
    "{a} {object} {place} on {ground}",
    "{a} {object} {place} on {ground}",
    "{a} {object} on {ground}, {place}",
    "{a} {what} in {colour} {place} on {ground}",
    "{a} {object} {place}, {plain} background",
    "{plain} background, {a} {object} {place}",
    "on {ground} {a} {object} {place}",
    "{a} {object} {place}",
    "{object} {place}, {plain} background",
    "the {what} {place} is {colour} and the background is {plain}",
    "{a} {object} on {ground}",
    "{a} {object}",
)
"""The eighth leaves the background open, the last two the place; the last one both."""
SEVERAL = (
    "{count} {objects} on {ground}",
    "{count} {objects} on {ground}",
    "{count} {objects}, {plain} background",
    "{count} {whats} in {colour} on {ground}",
    "on {ground} {count} {objects}",
    "{count} {objects}",
)


def article(words: str) -> str:
    """Return the words behind `a` or `an`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(word: str) -> str:
    """Return the plural of the name of a shape or thing."""
    return f"{word}es" if word.endswith("s") else f"{word}s"


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence, and what of its scene it leaves open."""

    text: str
    tells_place: bool
    tells_background: bool


def plain(scene: Scene, *, ground: bool = True) -> str:
    """Return the one sentence that says everything in the commonest words.

    Args:
        scene: what it tells.
        ground: whether the background is part of it.
    """
    ways = ONE if scene.place else SEVERAL
    return _filled(ways[0] if ground else ways[0].removesuffix(" on {ground}"), scene, 0, 0)


def varied(scene: Scene, rng: Any) -> Caption:
    """Return one of the many ways to tell a scene; `rng` is a NumPy generator."""
    ways: Sequence[str] = ONE if scene.place else SEVERAL
    way = ways[int(rng.integers(len(ways)))]
    lead = LEADS[int(rng.integers(len(LEADS)))]
    said = _filled(way, scene, int(rng.integers(3)), int(rng.integers(3)))
    if way.startswith("{count}"):
        lead = lead.replace("is", "are")
    elif not way.startswith("{a}") or ("there" in lead and "{plain} background" in way):
        lead = ""
    return Caption(f"{lead}{said}", "{place}" in way, "{plain}" in way or "{ground}" in way)


def _filled(way: str, scene: Scene, place: int, size: int) -> str:
    """Return a sentence filled in, with one of three wordings of its place, and of its looks."""
    word = f"{SIZES[scene.size][size]} " if scene.size else ""
    word += f"{FILLS[scene.fill][size]} " if scene.fill else ""
    told, what = f"{word}{scene.colour} {scene.what}", f"{word}{scene.what}"
    # `{a} {object}` and `{a} {what}` begin with different words.
    first = told if "{a} {object}" in way else what
    return way.format(
        a=article(first).split()[0],
        object=told,
        what=what,
        objects=f"{scene.colour} {plural(scene.what)}",
        whats=plural(scene.what),
        colour=scene.colour,
        plain=scene.background,
        ground=f"{article(scene.background)} background",
        count=COUNTS.get(len(scene.spots), ""),
        place=PLACES[scene.place][place] if scene.place else "",
    )
