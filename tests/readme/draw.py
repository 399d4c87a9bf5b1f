"""Draw the README's pictures of finished runs in ./runs.

    python tests/readme/draw.py grid OUT.png RUN [RUN ...] [--lines 4-9] [--columns 6]
    python tests/readme/draw.py curve OUT.png REPORT

A grid has the pictures of a run in the order of its prompts; of several runs, those of one prompt
stand below each other. A curve is the chart of the loss, of a page that `launcher report` wrote, as
headless Chromium shows it. Must not change a pixel of what was painted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

GAP = 4
"""Pixels between pictures, white."""


def painted(runs: Sequence[Path], lines: range) -> list[list[Image.Image]]:
    """Return the pictures of each run whose prompts stand in these lines, in their order.

    Raises:
        ValueError: a run has no pictures there, others than the first, or ones of another size.
    """
    found: list[dict[tuple[int, int], Image.Image]] = []
    for run in runs:
        manifest = run / "manifest.jsonl"
        if not manifest.is_file():
            raise ValueError(f"{run}: no pictures there; wait for the run, or see launcher list")
        rows = [json.loads(row) for row in manifest.open(encoding="utf-8")]
        rows.sort(key=lambda row: (row["line"], row["image"]))
        wanted = {(row["line"], row["image"]): row["file"] for row in rows if row["line"] in lines}
        found.append({k: Image.open(run / name).convert("RGB") for k, name in wanted.items()})
        sizes = {picture.size for one in found for picture in one.values()}
        if not wanted or wanted.keys() != found[0].keys() or len(sizes) > 1:
            raise ValueError(f"{run}: no pictures of these lines, or others than {runs[0]} has")
    return [list(one.values()) for one in found]


def grid(rows: Sequence[Sequence[Image.Image]], columns: int) -> Image.Image:
    """Return rows of pictures of one size; those of one place in the rows are kept together."""
    width, height = rows[0][0].size
    bands = -(-len(rows[0]) // columns)
    across, down = min(columns, len(rows[0])), bands * len(rows)
    whole = Image.new(
        "RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), (255, 255, 255)
    )
    for number, row in enumerate(rows):
        for place, picture in enumerate(row):
            band, column = divmod(place, columns)
            top = (band * len(rows) + number) * (height + GAP)
            whole.paste(picture, (column * (width + GAP), top))
    return whole


def cell(whole: Image.Image, row: int, column: int, side: int = 128) -> Image.Image:
    """Return one picture of a grid again."""
    left, top = column * (side + GAP), row * (side + GAP)
    return whole.crop((left, top, left + side, top + side))


def curve(page: Path, out: Path) -> None:
    """Write the chart of the loss of a training page."""
    from playwright.sync_api import sync_playwright

    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path)
        shown = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        shown.locator("#charts > *").first.screenshot(path=out)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    of_pictures = verbs.add_parser("grid")
    of_pictures.add_argument("out", type=Path)
    of_pictures.add_argument("runs", nargs="+")
    of_pictures.add_argument("--lines", default="1-9999")
    of_pictures.add_argument("--columns", type=int, default=6)
    of_loss = verbs.add_parser("curve")
    of_loss.add_argument("out", type=Path)
    of_loss.add_argument("report", type=Path)
    given = parser.parse_args()
    if given.verb == "curve":
        if not (given.report / "index.html").is_file():
            parser.error(f"{given.report}: no page there; launcher report RUN writes one")
        curve(given.report / "index.html", given.out)
        return
    first, _, last = given.lines.partition("-")
    try:
        lines = range(int(first), int(last or first) + 1)
        rows = painted([Path("runs") / run for run in given.runs], lines)
        grid(rows, max(1, given.columns)).save(given.out, format="png", optimize=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
