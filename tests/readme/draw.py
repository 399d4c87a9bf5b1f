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


def painted(run: Path, lines: range) -> list[Image.Image]:
    """Return the pictures of a run whose prompts stand in these lines, in their order."""
    rows = [json.loads(row) for row in (run / "manifest.jsonl").open(encoding="utf-8")]
    wanted = sorted((row for row in rows if row["line"] in lines), key=lambda row: row["line"])
    return [Image.open(run / row["file"]).convert("RGB") for row in wanted]


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
        curve(given.report / "index.html", given.out)
        return
    first, last = map(int, given.lines.split("-"))
    rows = [painted(Path("runs") / run, range(first, last + 1)) for run in given.runs]
    grid(rows, given.columns).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
