"""Measures a gallery: how long `launcher report` takes, and what a person sees of it in Chromium.

    python tests/bench/gallery.py [--pictures 10000] [--side 320] [--keep DIR]

The pictures are drawn (soft colours with grain, so that thumbnails weigh what a photograph's do)
and lie in a folder store. Chromium is headless, of CHROMIUM or PATH; the page is opened as a file
and over HTTP on loopback (rclone, of PATH), in a fresh context each time. Then it is scrolled:
jumps to places far apart, and the wheel at 3,000 pixels a second. A tile is blank while it is in
the window and its picture is not loaded; each frame looks at all of them, so the figures are whole
frames (16 ms where the machine keeps up: the slowest tells whether it did).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

FIRST_PAINT, BLANK = 1.0, 0.5
"""Seconds; the bars."""
JUMPS, WHEEL_SECONDS, WHEEL_SPEED = 25, 5, 3000

WATCH = """() => {
    const blank = new Map(); // picture -> since when it is in the window and not loaded
    window.watched = {longest: 0, frames: 0, slowest: 0, spans: []};
    let before = performance.now();
    const look = (now) => {
        watched.frames += 1;
        watched.slowest = Math.max(watched.slowest, now - before);
        before = now;
        const seen = new Set();
        for (const tile of document.querySelectorAll(".tile")) {
            const box = tile.getBoundingClientRect();
            if (box.bottom <= 0 || box.top >= innerHeight) continue;
            for (const image of tile.querySelectorAll("img")) {
                if (image.complete && image.naturalWidth > 0) continue;
                seen.add(image);
                if (!blank.has(image)) blank.set(image, now);
            }
        }
        for (const [image, since] of blank) {
            watched.longest = Math.max(watched.longest, now - since);
            if (!seen.has(image)) { watched.spans.push(now - since); blank.delete(image); }
        }
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}"""
LOADED = """() => {
    const images = [...document.querySelectorAll(".tile")].filter((tile) => {
        const box = tile.getBoundingClientRect();
        return box.bottom > 0 && box.top < innerHeight;
    }).flatMap((tile) => [...tile.querySelectorAll("img")]);
    return images.length > 0 && images.every((image) => image.complete && image.naturalWidth > 0)
        ? performance.now() : 0;
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a person saw of the page; seconds."""

    way: str
    first_paint: float
    whole: float
    """Until each tile of the first window had its picture."""
    blank_jumping: float
    """The longest that a tile was blank after a jump."""
    blank_wheeling: float
    slowest_frame: float
    search: float
    """From the last letter to the filtered grid, the pause for typing included."""
    tiles: int
    heap_mib: float


def paint(root: Path, pictures: int, side: int) -> int:
    """Write a run that has painted so many pictures; return their bytes."""
    chance = random.Random(1)
    grain = Image.effect_noise((side, side), 60).convert("RGB")
    bases = []
    for _ in range(40):
        small = Image.new("RGB", (6, 6))
        small.putdata([tuple(chance.randrange(256) for _ in range(3)) for _ in range(36)])
        soft = small.resize((side, side), Image.Resampling.BICUBIC)
        bases.append(Image.blend(soft, grain, 0.12))
    (root / "many/images").mkdir(parents=True)

    def one(number: int) -> dict[str, object]:
        line, image = number // 4 + 1, number % 4
        shifted = ImageChops.offset(bases[number % 40], number % side, number // side)
        buffer = io.BytesIO()
        shifted.save(buffer, "PNG", compress_level=1)
        name = f"images/{line:05d}-{image:02d}.png"
        (root / "many" / name).write_bytes(buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        row = {"line": line, "image": image, "prompt": f"a ship in a storm, oil on canvas, {line}"}
        row |= {"seed": line % 8, "worker": image % 2, "seconds": 1.5}
        return row | {"file": name, "sha256": digest, "bytes": buffer.tell()}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(one, range(pictures)))
    (root / "many/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"spec": {"kind": "infer", "width": side, "height": side, "steps": 30}}
    (root / "many/spec.json").write_text(json.dumps(spec))
    return sum(int(str(row["bytes"])) for row in rows)


def report(root: Path) -> float:
    """Write the gallery in a process of its own; return its seconds."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "launcher.cli", "report", "many", "--store", str(root / "store"),
         "--out", str(root / "gallery")],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - began


def look(browser: Any, way: str, url: str) -> Seen:
    """Open the page, scroll and search in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(url, wait_until="commit")
    whole = page.wait_for_function(LOADED).json_value() / 1000
    entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    first = page.evaluate(entry) / 1000
    page.evaluate(WATCH)
    chance = random.Random(2)
    for _ in range(JUMPS):
        page.evaluate(f"scrollTo(0, {chance.random()} * document.body.scrollHeight)")
        page.wait_for_timeout(50)
        page.wait_for_function(LOADED)
        page.wait_for_timeout(50)
    jumping = page.evaluate("watched.longest") / 1000
    page.evaluate("watched.longest = watched.slowest = 0")
    page.mouse.move(600, 500)
    for _ in range(WHEEL_SECONDS * 20):
        page.mouse.wheel(0, WHEEL_SPEED / 20)
        page.wait_for_timeout(50)
    wheeling = page.evaluate("watched.longest") / 1000
    frame = page.evaluate("watched.slowest") / 1000
    search = page.evaluate("""() => new Promise((done) => {
        const began = performance.now(), before = document.getElementById("count").textContent;
        document.getElementById("search").value = "storm 77";
        document.getElementById("search").dispatchEvent(new Event("input"));
        const wait = () => document.getElementById("count").textContent !== before
            ? done(performance.now() - began) : requestAnimationFrame(wait);
        wait();
    })""")
    session = context.new_cdp_session(page)
    heap = session.send("Runtime.getHeapUsage")["usedSize"] / 2**20
    tiles = page.locator(".tile").count()
    context.close()
    return Seen(
        way=way,
        first_paint=first,
        whole=whole,
        blank_jumping=jumping,
        blank_wheeling=wheeling,
        slowest_frame=frame,
        search=search / 1000,
        tiles=tiles,
        heap_mib=heap,
    )


def _wait(port: int) -> None:
    for _ in range(100):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("rclone does not serve")


def looks(gallery: Path) -> list[Seen]:
    """Return what is seen of the page as a file and over HTTP."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["rclone", "serve", "http", str(gallery), "--addr", f"127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _wait(port)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program)
            places = {
                "file://": (gallery / "index.html").absolute().as_uri(),
                "http://": f"http://127.0.0.1:{port}/index.html",
            }
            return [look(browser, way, url) for way, url in places.items()]
    finally:
        server.kill()
        server.wait()


def table(seen: list[Seen]) -> str:
    """Return the figures as lines of a Markdown table."""
    lines = ["| gallery in Chromium | file:// | http:// | bar |", "|---|---|---|---|"]
    for label, name, bar in (
        ("first paint", "first_paint", f"<= {FIRST_PAINT} s"),
        ("first window whole", "whole", ""),
        (f"longest blank tile, {JUMPS} jumps", "blank_jumping", f"<= {BLANK} s"),
        (f"longest blank tile, wheel {WHEEL_SPEED} px/s", "blank_wheeling", f"<= {BLANK} s"),
        ("slowest frame, wheel", "slowest_frame", ""),
        ("search", "search", ""),
    ):
        cells = " | ".join(f"{getattr(row, name):.3f} s" for row in seen)
        lines.append(f"| {label} | {cells} | {bar} |")
    lines.append(f"| tiles that exist | {' | '.join(str(row.tiles) for row in seen)} | |")
    lines.append(f"| JavaScript heap | {' | '.join(f'{r.heap_mib:.1f} MiB' for r in seen)} | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--keep", type=Path, help="folder to leave store and gallery in")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = asked.keep or Path(scratch)
        if not (root / "store").exists():
            size = paint(root / "store", asked.pictures, asked.side)
            print(f"{asked.pictures} pictures, {size / 2**20:.0f} MiB", flush=True)
        print(f"launcher report: {report(root):.1f} s", flush=True)
        print(f"launcher report again: {report(root):.1f} s", flush=True)
        thumbs = [path.stat().st_size for path in (root / "gallery/many/thumbs").iterdir()]
        index = (root / "gallery/data.js").stat().st_size
        each = sum(thumbs) / len(thumbs)
        print(f"thumbnails: {each / 1000:.1f} kB each; data.js {index / 1e6:.2f} MB", flush=True)
        seen = looks(root / "gallery")
        print(table(seen))
    good = all(
        row.first_paint <= FIRST_PAINT and max(row.blank_jumping, row.blank_wheeling) <= BLANK
        for row in seen
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
