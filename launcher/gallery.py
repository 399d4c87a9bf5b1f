"""Owns what a gallery shows: rows of picture manifests -> the data of its page. Pure.

Must not do I/O. The page (pages/gallery.js) reads what `data` returns; a picture's settings are its
manifest row, whatever keys that has, and the run's spec for what the row does not say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import layout

Row = Mapping[str, Any]
_Place = tuple[bool, int, int, str]

SETTINGS = (
    "lora", "lora_step", "lora_weight", "scheduler", "steps", "guidance", "guidance_rescale",
    "negative", "width", "height", "seed", "model", "vae",
    "precision",
)  # fmt: skip
"""Keys of a spec that say how each of its pictures was painted."""
TOLD_ONCE = ("prompts",)
"""Keys of a spec that the pictures' own rows say better."""
NOT_TOLD = ("sha256", "slot")
"""Keys of a row that would make the page larger and nobody wiser."""
MOSTLY_DISTINCT = 0.7
"""Distinct values of a column, as a part of its rows, past which it is kept row by row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One run, as its records tell of it."""

    run: str
    spec: Row
    result: Row
    rows: Sequence[Row]
    """Of its committed pictures, in order of line and image."""
    thumbs: Mapping[str, str]
    """File of a picture -> its thumbnail, below the run's folder; none for what is no picture."""
    missing: int = 0
    """Pictures that were asked for and are not there."""


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Return the rows by line and image, one a file; rows without either come last, by file."""
    by_file = {str(row["file"]): row for row in rows}
    return [
        by_file[file] for file in sorted(by_file, key=lambda file: (_place(by_file[file]), file))
    ]


def data(sources: Sequence[Source]) -> dict[str, object]:
    """Return the page's data: the runs' columns, and which of their pictures belong together."""
    return {
        "runs": [
            {
                "run": source.run,
                "spec": {key: v for key, v in source.spec.items() if key not in TOLD_ONCE},
                "result": dict(source.result),
                "missing": source.missing,
                "count": len(source.rows),
                "columns": columns([_complete(source, row) for row in source.rows]),
            }
            for source in sources
        ],
        "items": paired([source.rows for source in sources]),
    }


def columns(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows by column, so that 10,000 of them are small and their values are known.

    A column is {key, values, at}: row i has values[at[i]]; or {key, values} with one value a row.
    A list of columns, not a mapping: a key may be any text, such as a name of JavaScript's own.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [_column(str(key), [row.get(key) for row in rows]) for key in keys]


def paired(runs: Sequence[Sequence[Row]]) -> list[list[int]]:
    """Return what the tiles show: for each of them the row of each run, -1 where it has none.

    Runs are matched by (line, image); a row that lacks them goes by its file.
    """
    items: dict[tuple[_Place, int], list[int]] = {}
    for run, rows in enumerate(runs):
        seen: Counter[_Place] = Counter()
        for index, row in enumerate(rows):
            place = _place(row)
            items.setdefault((place, seen[place]), [-1] * len(runs))[run] = index
            seen[place] += 1
    return [items[key] for key in sorted(items)]


def _place(row: Row) -> _Place:
    line, image = _whole(row.get("line")), _whole(row.get("image"))
    if line is None:
        return True, 0, 0, str(row.get("file", ""))
    return False, line, image or 0, ""


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _complete(source: Source, row: Row) -> Row:
    """Return the row with what its run's spec says of it, and its thumbnail."""
    settings = {key: source.spec.get(key) for key in SETTINGS if key not in row}
    if source.spec.get("lora") is None:
        settings = {key: v for key, v in settings.items() if not key.startswith("lora")}
    settings |= {"lora": layout.lora_name(settings["lora"])} if settings.get("lora") else {}
    known = {key: value for key, value in settings.items() if value is not None}
    told = {key: value for key, value in row.items() if key not in NOT_TOLD}
    return {**told, **known, "thumb": source.thumbs.get(str(row["file"]))}


def _column(key: str, values: list[Any]) -> dict[str, object]:
    # By their text: 1 and True, or 1 and 1.0, are equal and not the same setting.
    places: dict[str, int] = {}
    distinct: list[Any] = []
    at: list[int] = []
    for value in values:
        name = repr(value)
        if name not in places:
            places[name] = len(distinct)
            distinct.append(value)
        at.append(places[name])
    if len(distinct) == 1:
        return {"key": key, "values": distinct, "at": []}
    if len(distinct) > len(values) * MOSTLY_DISTINCT:
        return {"key": key, "values": values}
    return {"key": key, "values": distinct, "at": at}
