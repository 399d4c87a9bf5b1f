"""The pages of `launcher report` in a real browser: what a person sees, types and touches."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil

import pytest
from PIL import Image

from launcher import cli, gallery, templates

pytestmark = pytest.mark.browser

NASTY = "</script><script>alert(1)</script> <b>\"'& \u0642\u0637 \U0001f98a"
COUNT, LATER = 120, 118
LOADED = """() => {
    const tiles = [...document.querySelectorAll(".tile")].filter((tile) => {
        const box = tile.getBoundingClientRect();
        return box.bottom > 0 && box.top < innerHeight;
    });
    return tiles.length > 0 && tiles.every((tile) => [...tile.querySelectorAll("img")]
        .every((image) => image.complete && image.naturalWidth > 0));
}"""
OVERFLOW = "() => document.scrollingElement.scrollWidth - innerWidth"


def png(number, side=48):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number * 7 % 256, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def sampling(root, run, count, **spec):
    """Write a run that has painted `count` pictures, two a line."""
    (root / run / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        line, image = number // 2 + 1, number % 2
        name, data = f"images/{line:05d}-{image:02d}.png", png(number)
        (root / run / name).write_bytes(data)
        prompt = NASTY if line == 1 else f"a {'red' if line % 3 else 'blue'} ship, number {line}"
        rows.append({"line": line, "image": image, "prompt": prompt, "seed": line % 4})
        rows[-1] |= {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "worker": image}
    (root / run / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"spec": {"kind": "infer", "width": 48, "height": 48, "steps": 20, **spec}}
    (root / run / "spec.json").write_text(json.dumps(record))


def training(root, run, rate):
    """Write a run that has trained 200 steps, with a validation at 100 and 200."""
    (root / run / "images").mkdir(parents=True)
    steps, rows = range(10, 201, 10), []
    metrics = [{"step": step, "loss": 1 / step + rate / 100, "img_s": rate} for step in steps]
    for row in metrics:
        row["time"] = f"2026-01-01T00:{row['step'] // 10:02d}:00Z"
    for step in (100, 200):
        name, data = f"images/step-{step:08d}-00.png", png(step)
        (root / run / name).write_bytes(data)
        rows.append({"line": 1, "image": 0, "step": step, "prompt": NASTY, "seconds": 2})
        rows[-1] |= {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
    for name, found in (("metrics.jsonl", metrics), ("manifest.jsonl", rows)):
        (root / run / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    record = {"spec": {"kind": "train", "steps": 200, "learning_rate": rate, "method": "lora"}}
    (root / run / "spec.json").write_text(json.dumps(record))
    result = {"kind": "train", "compile_s": 30, "ms_per_step": 100, "img_s": rate}
    (root / run / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the folder with the reports `one`, `pair`, `trained` and `both`."""
    root = tmp_path_factory.mktemp("pages")
    sampling(root / "store", "before", COUNT, lora=None)
    sampling(root / "store", "after", LATER, lora="pirate")
    for run, rate in (("slow", 1.0), ("fast", 3.0)):
        training(root / "store", run, rate)
    reports = {"one": ["before"], "pair": ["before", "after"], "trained": ["slow"]}
    for name, runs in {**reports, "both": ["slow", "fast"]}.items():
        arguments = ["report", *runs, "--out", str(root / name), "--store", str(root / "store")]
        assert cli.main(arguments) == 0
    return root


def count(page):
    return page.inner_text("#count")


# ---- the gallery


@pytest.mark.parametrize("way", ["file", "http"])
def test_a_gallery_shows_its_pictures(pages, opened, served, way):
    page = opened(pages / "one" if way == "file" else f"{served(pages / 'one')}/index.html")
    page.wait_for_function(LOADED)
    assert count(page) == "120 pictures"
    assert page.inner_text("h1") == "before"
    assert "thumbs/" in page.get_attribute(".tile img", "src")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator(".caption", has_text="number 60").first.wait_for()
    page.wait_for_function(LOADED)
    assert page.evaluate(OVERFLOW) <= 0


def test_a_prompt_is_text_on_the_page(pages, opened):
    page = opened(pages / "one")
    assert page.inner_text(".caption >> nth=0") == NASTY
    page.click(".tile >> nth=0")
    assert page.inner_text("#prompt") == NASTY
    assert page.title() == "before"


def test_search_and_filters(pages, opened):
    page = opened(pages / "one")
    page.keyboard.press("/")
    page.keyboard.type("BLUE 33")
    page.get_by_text("2 of 120 pictures").wait_for()
    page.keyboard.press("Escape")
    assert count(page) == "120 pictures"
    names = page.locator("#facets select").evaluate_all("all => all.map((one) => one.name)")
    assert names == ["prompt", "seed", "image"]
    page.select_option("[name=seed]", "3")
    assert count(page) == "30 of 120 pictures"
    page.fill("#search", "blue")
    page.get_by_text("10 of 120 pictures").wait_for()
    page.fill("#search", "nowhere to be found")
    page.get_by_text("No picture is like that").wait_for()
    page.click("#all")
    assert count(page) == "120 pictures"
    assert page.input_value("[name=seed]") == ""
    page.select_option("[name=prompt]", json.dumps(NASTY, ensure_ascii=False))
    assert count(page) == "2 of 120 pictures"


def test_the_large_view_goes_by_keyboard(pages, opened):
    page = opened(pages / "one")
    page.click(".tile >> nth=4")
    large = page.locator("#stage img")
    assert large.get_attribute("src") == "before/images/00003-00.png"
    for key, place in (("ArrowRight", "6"), ("ArrowLeft", "5"), ("End", "120"), ("Home", "1")):
        page.keyboard.press(key)
        page.get_by_text(f"{place} of 120", exact=True).wait_for()
    assert page.is_disabled("#before")
    # Faster than the browser tells that the address has changed.
    page.evaluate("""() => [1, 2, 3].forEach(() => document.dispatchEvent(
        new KeyboardEvent("keydown", {key: "ArrowRight"})))""")
    page.get_by_text("4 of 120", exact=True).wait_for()
    page.keyboard.press("End")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.activeElement.dataset.place === '119'")
    assert not page.evaluate("document.getElementById('large').open")
    assert page.evaluate("location.hash") == ""
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.get_by_text("119 of 120", exact=True).wait_for()


def test_a_picture_has_an_address_and_back_closes_it(pages, opened):
    page = opened((pages / "one" / "index.html").absolute().as_uri() + "#7-1")
    page.get_by_text("14 of 120", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.click(".tile >> nth=2")
    page.get_by_text("3 of 120", exact=True).wait_for()
    page.go_back()
    page.wait_for_function("() => !document.getElementById('large').open")
    page.click(".tile >> nth=3")
    page.click("#alike")
    assert count(page) == "2 of 120 pictures"


def test_a_finger_swipes(pages, opened):
    page = opened(
        pages / "one", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page.wait_for_function(LOADED)
    assert page.evaluate(OVERFLOW) <= 0
    page.tap(".tile >> nth=0")
    page.get_by_text("1 of 120", exact=True).wait_for()
    touch = page.context.new_cdp_session(page)

    def swipe(*xs):
        for kind, points in (("touchStart", xs[:1]), *(("touchMove", (x,)) for x in xs[1:])):
            row = {"type": kind, "touchPoints": [{"x": x, "y": 200} for x in points]}
            touch.send("Input.dispatchTouchEvent", row)
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    swipe(300, 200, 100)
    page.get_by_text("2 of 120", exact=True).wait_for()
    swipe(100, 200, 300)
    page.get_by_text("1 of 120", exact=True).wait_for()
    assert page.evaluate(OVERFLOW) <= 0


def test_dark_and_light_follow_the_system_and_a_button(pages, opened):
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = opened(pages / "one", color_scheme="light")
    page = opened(pages / "one", color_scheme="dark")
    assert page.evaluate(paper) != light.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) == light.evaluate(paper)
    page.reload()
    assert page.evaluate(paper) == light.evaluate(paper)


def test_two_runs_stand_side_by_side(pages, opened):
    page = opened(pages / "pair")
    page.wait_for_function(LOADED)
    assert count(page) == "120 pairs, 2 in one run only"
    sources = (
        page.locator(".tile >> nth=2")
        .locator("img")
        .evaluate_all("all => all.map((one) => one.getAttribute('src').split('/')[0])")
    )
    assert sources == ["before", "after"]
    page.click(".tile >> nth=2")
    assert page.locator("#stage img").count() == 2
    assert "pirate" in page.inner_text("#facts tr.differs")
    page.click("#over")
    boxes = [page.locator("#stage img").nth(at).bounding_box() for at in (0, 1)]
    assert boxes[0] == boxes[1]
    page.fill("#wipe", "30")
    clip = "() => getComputedStyle(document.querySelectorAll('#stage figure')[1]).clipPath"
    assert "70%" in page.evaluate(clip)
    page.keyboard.press("Escape")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.get_by_text("not in this run").first.wait_for()


def test_ten_thousand_pictures_are_a_few_tiles(pages, opened, tmp_path):
    total = 10_000
    shutil.copy(pages / "one" / "index.html", tmp_path)
    (tmp_path / "r/images").mkdir(parents=True)
    (tmp_path / "r/images/x.png").write_bytes(png(1))
    rows = [
        {"line": line, "image": 0, "prompt": f"prompt {line}", "seed": line, "file": "images/x.png"}
        for line in range(1, total + 1)
    ]
    source = gallery.Source(run="r", spec={}, result={}, rows=rows, thumbs={})
    document = templates.script_json(gallery.data([source]))
    (tmp_path / "data.js").write_text(f"window.report = {document};\n")
    page = opened(tmp_path)
    assert count(page) == "10,000 pictures"
    for part in (0.1, 0.31, 0.52, 0.77, 1.0):
        page.evaluate(f"scrollTo(0, {part} * document.body.scrollHeight)")
        page.wait_for_function(LOADED)
        assert page.locator(".tile").count() < 100
    page.locator(".caption", has_text="prompt 10000").wait_for()
    page.fill("#search", "prompt 9876")
    page.get_by_text("1 of 10,000 pictures").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#facets select").count() == 0  # too many values to choose from


# ---- the page of a training run


def test_a_training_page_draws_its_curves(pages, opened):
    page = opened(pages / "trained")
    assert page.locator("#charts .chart").count() == 2
    path = page.locator("#charts path").first
    assert len(re.findall("[ML]", path.get_attribute("d"))) == 20
    chart = page.locator("#charts svg").first.bounding_box()
    page.mouse.move(chart["x"] + chart["width"] - 15, chart["y"] + 50)
    assert page.inner_text("#charts .at >> nth=0") == "step 200: 0.015"
    straight = path.get_attribute("d")
    page.fill("#smooth", "90")
    assert page.locator("#charts path.raw").first.get_attribute("d") == straight
    assert page.locator("#charts path:not(.raw)").first.get_attribute("d") != straight
    page.fill("#smooth", "0")
    page.check("#log")
    assert page.locator("#charts path").first.get_attribute("d") != straight
    page.select_option("#along", "time")
    page.locator("#charts svg text", has_text="10m 00s").first.wait_for()
    assert "compile" in page.inner_text("#lanes")
    assert page.inner_text("#split .legend").startswith("compile 30s")
    assert page.evaluate(OVERFLOW) <= 0


def test_validation_pictures_over_steps(pages, opened):
    page = opened(pages / "trained")
    assert page.inner_text("#pictures tbody th") == NASTY
    page.wait_for_function("""() => [...document.querySelectorAll("#pictures img")]
        .every((image) => image.complete && image.naturalWidth > 0)""")
    page.click("#pictures button >> nth=0")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#caption") == f"step 200: {NASTY}"
    page.keyboard.press("Escape")
    assert not page.is_visible("#large")


@pytest.mark.parametrize("width", [390, 1280])
def test_two_trainings_lie_over_each_other(pages, opened, width):
    page = opened(pages / "both", viewport={"width": width, "height": 844})
    chart = page.locator("#charts .chart").first
    assert chart.locator("path.one").count() == chart.locator("path.two").count() == 1
    assert "slow and fast" in " ".join(page.inner_text("#title").split())
    assert "learning_rate" in page.inner_text("#tables tr.differs >> nth=0")
    assert page.locator("#pictures tbody tr").count() == 2
    assert page.evaluate(OVERFLOW) <= 0
