"""Draw the README's pictures of a finished run in ./runs.

    python tests/readme/draw.py OUT.png RUN [--columns 8]

A grid of the run's pictures, in the order of its prompts. Must not change a pixel of what was
painted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

GAP = 4
"""Pixels between pictures, white."""


def painted(run: Path) -> list[Image.Image]:
    """Return the pictures of a run in the order of its prompts."""
    rows = [json.loads(row) for row in (run / "manifest.jsonl").open(encoding="utf-8")]
    rows.sort(key=lambda row: row["line"])
    return [Image.open(run / row["file"]).convert("RGB") for row in rows]


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pictures of one size in rows of `columns`."""
    width, height = (side + GAP for side in pictures[0].size)
    across, down = min(columns, len(pictures)), -(-len(pictures) // columns)
    whole = Image.new("RGB", (across * width - GAP, down * height - GAP), (255, 255, 255))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        whole.paste(picture, (column * width, row * height))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("run")
    parser.add_argument("--columns", type=int, default=8)
    given = parser.parse_args()
    grid(painted(Path("runs") / given.run), given.columns).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
