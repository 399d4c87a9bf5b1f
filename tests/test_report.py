"""The verb `report` on a folder store: what is written, what is fetched, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import time

import pytest
from PIL import Image

from jobs import commits, layout, retention
from jobs.stores import FileStore
from launcher import cli, gallery, templates, thumbnails, trainingpage

NASTY = "</script><script>alert(1)</script> <!-- \"'& \u2028 \u0642\u0637 \U0001f98a"
SPEC = {
    "kind": "infer",
    "lora": "pirate",
    "lora_weight": 0.8,
    "steps": 30,
    "prompts": [{"line": 1, "prompt": "x"}],
}
START = 1_760_000_000
VERSIONS = {"jobs": "0.1.0", "mindspore": "2.7.0", "mindone": "0.3.0"}


def png(colour, side=16):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def add(store, run, name, data, **row):
    """Commit a picture: the object, then its row."""
    key = layout.key(run, layout.PICTURES)
    before = store.read(key) if (store.root / key).exists() else b""
    path = f"{layout.IMAGES}/{name}"
    store.write(layout.key(run, path), data)
    whole = {**row, "file": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    store.write(key, before + json.dumps(whole).encode() + b"\n")


def spec(store, run, document):
    store.write(
        layout.key(run, layout.SPEC),
        json.dumps({"spec": document, "attempts": 2, "versions": VERSIONS}).encode(),
    )


@pytest.fixture
def store(tmp_path):
    """Two runs that sample, which share lines 1 and 2."""
    store = FileStore(tmp_path / "store")
    for run, lines in (("before", (1, 2, 3)), ("after", (1, 2))):
        spec(store, run, {**SPEC, "lora": "pirate" if run == "after" else None})
        for line in lines:
            row = {"line": line, "image": 0, "prompt": NASTY if line == 1 else f"{line}", "seed": 7}
            add(store, run, f"{line:05d}-00.png", png((line * 40, len(run) * 30, 0)), **row)
    store.write("before/images/00009-00.png", png("red"))  # painted, not committed
    return store


@pytest.fixture
def training(store):
    """Add two runs that train: 40 steps, a pause after 20, a validation at 20 and 40."""
    for run, rate in (("slow", 1.0), ("fast", 2.0)):
        spec(store, run, {"kind": "train", "steps": 40, "method": "lora"})
        now, rows = float(START), []
        for step in (1, 10, 20, 30, 40):
            now += 10 / rate + (3600 if step == 30 else 0)
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
            loss = float("nan") if step == 30 else 1 / step
            rows.append({"step": step, "loss": loss, "img_s": rate, "new_key": {"deep": step}})
            rows[-1]["time"] = when
            if step in (20, 40):
                name = f"{layout.step_name(step)}-00.png"
                row = {"line": 1, "image": 0, "step": step, "prompt": NASTY, "seconds": 2.0}
                add(store, run, name, png((step, 0, 0)), **row)
                os.utime(store.root / run / "images" / name, (now, now))
        body = "".join(json.dumps(row) + "\n" for row in rows)
        store.write(layout.key(run, layout.METRICS), body.encode() + b'{"step": 50, "lo')
        result = {"kind": "train", "compile_s": 30.0, "ms_per_step": 1000 / rate}
        store.write(layout.key(run, layout.RESULT), json.dumps(result).encode())
    return store


@pytest.fixture
def run(tmp_path, monkeypatch, capfd, store):
    """Run the launcher in this process on that store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("LAUNCHER_")]:
        monkeypatch.delenv(name)

    def call(*arguments):
        code = cli.main(["report", *arguments, "--store", "store"])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


def refused(done, code, error):
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert error in lines[0]
    assert len(lines) <= 2
    assert "Traceback" not in done.stderr


def data_of(folder):
    """Return what the page reads."""
    if (folder / "data.js").exists():
        text = (folder / "data.js").read_text()
        return json.loads(re.fullmatch(r"window\.report = (.*);\n", text)[1])
    return json.loads(
        re.search(r"^const report = (.*);$", (folder / "index.html").read_text(), re.M)[1]
    )


def rows_of(found):
    """Return the rows that a page's columns stand for."""
    rows = [{} for _ in range(found["count"])]
    for column in found["columns"]:
        for index, row in enumerate(rows):
            at = column["at"][index] if column.get("at") else 0 if "at" in column else index
            row[column["key"]] = column["values"][at]
    return rows


def thumb_of(folder):
    return rows_of(data_of(folder)["runs"][0])[0]["thumb"]


def tree(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# ---- galleries


def test_a_gallery_holds_what_is_committed_and_nothing_else(run, store, tmp_path):
    done = run("before")
    assert (done.returncode, done.stdout) == (0, "report-before/index.html\n"), done.stderr
    folder = tmp_path / "report-before"
    names = [f"images/0000{line}-00.png" for line in (1, 2, 3)]
    rows = rows_of(data_of(folder)["runs"][0])
    assert [row["file"] for row in rows] == names
    thumbs = [row["thumb"] for row in rows]
    expected = {"index.html", "data.js", "report.json", *(f"before/{x}" for x in names + thumbs)}
    assert tree(folder) == expected
    for name, thumb in zip(names, thumbs, strict=True):
        assert (folder / "before" / name).read_bytes() == store.read(f"before/{name}")
        with Image.open(folder / "before" / thumb) as small:
            assert small.format == "JPEG"


def test_the_same_call_again_fetches_what_is_new(run, store, tmp_path):
    run("before")
    first = tmp_path / "report-before/before/images/00001-00.png"
    seen = first.stat()
    thumb = tmp_path / "report-before/before" / thumb_of(tmp_path / "report-before")
    made = thumb.stat()
    add(store, "before", "00004-00.png", png("blue"), line=4, image=0, prompt="new")
    done = run("before")
    assert "4 pictures, 1 of them fetched" in done.stderr
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns)
    assert (thumb.stat().st_ino, thumb.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert len(rows_of(data_of(tmp_path / "report-before")["runs"][0])) == 4


def test_a_prompt_is_never_markup_or_code(run, tmp_path):
    run("before", "--out", "x")
    assert rows_of(data_of(tmp_path / "x")["runs"][0])[0]["prompt"] == NASTY
    for name in ("data.js", "index.html"):
        text = (tmp_path / "x" / name).read_text()
        assert "alert(1)</script>" not in text
        assert "\u2028" not in text
    assert "<" not in (tmp_path / "x/data.js").read_text()


def test_two_runs_are_matched_by_line_and_image(run, tmp_path):
    assert run("before", "after").stdout == "report-before-after/index.html\n"
    found = data_of(tmp_path / "report-before-after")
    assert found["items"] == [[0, 0], [1, 1], [2, -1]]
    before, after = (rows_of(row) for row in found["runs"])
    assert not {"lora", "lora_weight"} & set(before[0])
    assert after[0]["lora"] == "pirate"
    assert before[0]["steps"] == 30


def test_rows_may_lack_keys_and_have_others(run, store, tmp_path):
    odd = {"line": "one", "__proto__": {"x": 1}, "seed": 2**60, "lora": ["a", 0.5], "prompt": None}
    add(store, "before", "odd #1?.png", png("green"), **odd)
    add(store, "before", "bare.png", png("pink"))
    add(store, "before", "broken.png", b"no picture")
    store.write("before/elsewhere.png", png("red"))
    row = {"file": "elsewhere.png", "sha256": hashlib.sha256(png("red")).hexdigest()}
    rows = store.read("before/manifest.jsonl") + json.dumps(row).encode() + b'\n{"file": 1}\n[]\n{'
    store.write("before/manifest.jsonl", rows)
    done = run("before")
    assert done.returncode == 0, done.stderr
    assert "broken.png is no picture" in done.stderr
    rows = {row["file"]: row for row in rows_of(data_of(tmp_path / "report-before")["runs"][0])}
    assert {key: rows["images/odd #1?.png"][key] for key in odd} == odd
    assert rows["images/broken.png"]["thumb"] is None
    assert rows["images/bare.png"]["prompt"] is None
    assert len(rows) == 6


def test_what_was_asked_for_and_is_not_there_is_counted(run, store, tmp_path):
    result = {"kind": "infer", "asked": 5, "pictures": 3, "failed": [4, 5]}
    store.write("before/result.json", json.dumps(result).encode())
    run("before")
    assert data_of(tmp_path / "report-before")["runs"][0]["missing"] == 2


# ---- refusals


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda path: path.write_bytes(png("black")), "is not the file that was committed"),
        (lambda path: path.unlink(), "is gone"),
    ],
)
def test_a_picture_that_is_not_the_committed_one_is_refused(run, store, tmp_path, damage, error):
    damage(store.root / "before/images/00002-00.png")
    refused(run("before"), 66, error)
    assert not (tmp_path / "report-before/index.html").exists()
    assert not (tmp_path / "report-before/before/images/00002-00.png").exists()


def test_no_such_run_and_nothing_yet(run, store):
    refused(run("nobody"), 66, "run 'nobody': no such run")
    refused(run("No Name"), 66, "no such run; that is no legal name")
    spec(store, "young", SPEC)
    store.write("young/images/00001-00.png", png("red"))
    refused(run("young"), 66, "run 'young': has no committed picture")


def test_runs_that_cannot_be_compared(run, training):
    refused(run("before", "before"), 2, "one run, or two different ones")
    refused(run("before", "after", "slow"), 2, "one run, or two different ones")
    refused(run("before", "slow"), 2, "before (infer) and slow (train)")


@pytest.mark.parametrize("held", ["mine", "other", "file", "damaged", "picture"])
def test_a_folder_that_holds_something_else_stays_as_it_is(run, tmp_path, held):
    out = tmp_path / "out"
    if held == "file":
        out.write_text("mine")
    elif held == "other":
        assert run("after", "--out", "out").returncode == 0
    elif held == "picture":
        (out / "before/images").mkdir(parents=True)
        (out / "report.json").write_text('{"kind": "infer", "runs": ["before"]}')
        (out / "before/images/00001-00.png").write_text("mine")
    else:
        out.mkdir()
        (out / ("report.json" if held == "damaged" else "notes.txt")).write_text("mine")
    before = {path: (out / path).read_bytes() for path in tree(out)} if out.is_dir() else {}
    done = run("before", "--out", "out")
    refused(done, 73, "out")
    assert "hint: --out names another folder" in done.stderr
    assert {path: (out / path).read_bytes() for path in tree(out)} == before if before else True


def test_records_that_are_damaged_or_lead_out(run, store, tmp_path):
    store.write("before/spec.json", b"{")
    refused(run("before"), 78, "is not JSON")
    add(store, "after", "x.png", b"")
    rows = store.read("after/manifest.jsonl").replace(b"images/x.png", b"images/../../../x.png")
    store.write("after/manifest.jsonl", rows)
    refused(run("after"), 78, "names a file outside of it")
    assert not (tmp_path / "x.png").exists()


# ---- training


def test_a_training_page_is_one_file_that_asks_for_nothing(run, training, tmp_path):
    done = run("slow")
    assert (done.returncode, done.stdout) == (0, "report-slow/index.html\n"), done.stderr
    text = (tmp_path / "report-slow/index.html").read_text()
    assert text.count("</script>") == 1
    outside = r"(?:src|href)=.(?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)"
    assert not re.search(outside, text)
    (found,) = data_of(tmp_path / "report-slow")["runs"]
    assert found["curves"]["step"] == [1, 10, 20, 30, 40]
    assert found["curves"]["loss"] == [1.0, 0.1, 0.05, None, 0.025]
    assert found["curves"]["new_key.deep"] == [1, 10, 20, 30, 40]
    assert [row["step"] for row in found["pictures"]] == [20, 40]
    assert all(row["source"].startswith("data:image/jpeg;base64,") for row in found["pictures"])
    assert found["about"]["attempts"] == 2
    assert found["about"].items() >= VERSIONS.items()


def test_a_timeline_tells_compilation_pauses_and_pictures(run, training, tmp_path):
    folder = training.root / "set"
    folder.mkdir()
    (folder / "x").write_text("x")
    commits.commit(training, retention.checkpoint("slow", 40), folder)
    marker = training.root / "slow" / layout.CHECKPOINTS / layout.step_name(40) / layout.COMMITTED
    os.utime(marker, (START + 3660, START + 3660))
    run("slow")
    (found,) = data_of(tmp_path / "report-slow")["runs"]
    lanes = {}
    for lane, begin, end, _ in found["spans"]:
        lanes.setdefault(lane, []).append((begin - START, end - START))
    assert lanes["steps"] == [(10, 30), (3640, 3650)]
    assert lanes["compile"] == [(3610, 3640)]
    assert lanes["validation"] == [(28, 30), (3648, 3650)]
    assert lanes["checkpoints"] == [(3660, 3660)]
    assert found["split"]["compile"] == 30
    assert found["split"]["step"] == 39
    assert found["split"]["validation"] == 4


def test_attempts_that_died_are_in_the_timeline_with_their_reasons(run, training, tmp_path):
    def at(seconds):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START + seconds))

    key, stalled = layout.key("slow", layout.SPEC), "79 stalled: worker 0: silent"
    history = [
        {"attempt": 1, "began": at(-7200), "ended": at(-7100), "code": 1, "reason": "error: bug"},
        {"attempt": 2, "began": at(0), "seen": at(30), "step": 20},
        {"attempt": 3, "began": at(100), "ended": at(160), "code": 75, "reason": "stopped: x"},
        {"attempt": 4, "began": at(3600)},
        "junk", {"attempt": [], "began": at(0)}, {"attempt": 5, "began": 7},
    ]  # fmt: skip
    document = json.loads(training.read(key)) | {"history": history[:4]}
    training.write(key, json.dumps(document).encode())
    row = {"step": 40, "attempt": 4, "time": at(3650)}
    rows = training.read(layout.key("slow", layout.METRICS)).rpartition(b"\n")[0]
    training.write(layout.key("slow", layout.METRICS), rows + b"\n" + json.dumps(row).encode())

    def lanes():
        assert run("slow").returncode == 0
        (found,) = data_of(tmp_path / "report-slow")["runs"]
        told = [span for span in found["spans"] if span[0] in ("attempts", "failed")]
        return found, [(lane, begin - START, end - START, text) for lane, begin, end, text in told]

    found, told = lanes()
    assert told == [
        ("failed", -7200, -7100, "attempt 1: 1 error: bug"),
        ("failed", 0, 30, f"attempt 2{trainingpage.NO_WORD} (after step 20)"),
        ("attempts", 100, 160, "attempt 3: 75 stopped: x"),
        ("attempts", 3600, 3650, "attempt 4"),
    ]
    assert found["about"]["attempt 1"] == "1 error: bug"
    assert "attempt 3" not in found["about"]
    # The newest one's end is not in the history yet.
    training.write("slow/claim.json", b'{"epoch": 4}')
    end = {"attempt": 4, "code": 79, "reason": "stalled: worker 0: silent", "time": at(3700)}
    training.write("slow/end.json", json.dumps(end).encode())
    found, told = lanes()
    assert told[-1] == ("failed", 3600, 3700, f"attempt 4: {stalled} (after step 40)")
    assert found["about"]["attempt 4"] == f"{stalled} (after step 40)"
    training.write(key, json.dumps(document | {"history": history}).encode())
    assert len(lanes()[1]) == 4


def test_the_time_of_compilation_is_that_of_all_attempts(run, training, tmp_path):
    key = layout.key("slow", layout.RESULT)
    result = json.loads(training.read(key)) | {"compile_all_s": 95.0}
    training.write(key, json.dumps(result).encode())
    run("slow")
    (found,) = data_of(tmp_path / "report-slow")["runs"]
    assert found["split"]["compile"] == 95
    assert [end - begin for lane, begin, end, _ in found["spans"] if lane == "compile"] == [30]


def test_two_trainings_are_on_one_page(run, training, tmp_path):
    assert run("slow", "fast", "--out", "both").returncode == 0
    found = data_of(tmp_path / "both")["runs"]
    assert [row["run"] for row in found] == ["slow", "fast"]
    assert [row["curves"]["img_s"][0] for row in found] == [1.0, 2.0]


def test_a_training_without_spec_result_or_times_still_has_its_curves(run, store, tmp_path):
    store.write(
        "bare/metrics.jsonl", b'{"step": 1, "loss": 2}\n{"loss": 3}\n{"step": 2, "loss": 1}'
    )
    assert run("bare").returncode == 0
    (found,) = data_of(tmp_path / "report-bare")["runs"]
    assert found["curves"] == {"step": [1, 2], "loss": [2, 1]}
    assert found["spans"] == []


# ---- the pure parts


@pytest.mark.parametrize("count", [1, 2, 7])
def test_columns_give_the_rows_back(count):
    values = [True, 1, 1.0, "1", None, [1], {"a": 1}]
    rows = [{"same": "x", "few": i % 2, "any": values[i], f"only{i}": i} for i in range(count)]
    found = gallery.columns(rows)
    keys = [column["key"] for column in found]
    back = rows_of({"count": count, "columns": found})
    expected = [{key: row.get(key) for key in keys} for row in rows]
    assert [list(map(repr, row.values())) for row in back] == [
        list(map(repr, row.values())) for row in expected
    ]


def test_rows_of_one_place_are_matched_in_their_order():
    one = {"line": 1, "image": 0, "file": "a"}
    twice = {"line": 1, "image": 0, "file": "b"}
    other = {"line": 2, "image": 0, "file": "c"}
    second = {"line": 1, "image": 1, "file": "d"}
    assert gallery.paired([[one, second], [second]]) == [[0, -1], [1, 0]]
    assert gallery.paired([[one, twice, other], [one, {"file": "z"}]]) == [
        [0, 0], [1, -1], [2, -1], [-1, 1],
    ]  # fmt: skip


def test_pictures_of_a_long_training_are_chosen_evenly():
    rows = [{"step": step, "line": line} for step in range(1, 1001) for line in (1, 2)]
    found = trainingpage.chosen(rows, most=20)
    assert len(found) == 20
    assert found[0]["step"] == 1
    assert found[-1]["step"] == 1000


def test_long_curves_are_thinned_but_for_their_ends():
    rows = [{"step": step, "loss": float(step)} for step in range(100_000)]
    found = trainingpage.curves(rows)
    assert len(found["loss"]) == trainingpage.MOST_POINTS
    assert (found["loss"][0], found["loss"][-1]) == (0.0, 99_999.0)


def test_a_later_row_of_a_step_wins():
    rows = [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 1, "loss": 3}]
    assert trainingpage.curves(rows) == {"step": [1, 2], "loss": [3, 2]}
    assert trainingpage.curves([{"step": 1, "loss": float("inf"), "ok": True}]) == {"step": [1]}


def test_json_for_scripts_says_nothing_that_html_hears():
    text = templates.script_json({"a": NASTY, "b": [float("inf"), 1.5], "c": {"d": float("nan")}})
    assert text.isascii()
    assert not set(text) & set("<>&")
    assert json.loads(text) == {"a": NASTY, "b": [None, 1.5], "c": {"d": None}}


def test_values_of_a_page_are_escaped():
    values = {"title": "<b>&\"'", "version": "1", "written": "now"}
    text = templates.page("training.html", values, {"report": {}})
    assert "<title>&lt;b&gt;&amp;&quot;&#x27;</title>" in text
    assert "{{" not in text


def test_a_thumbnail_keeps_proportion_and_is_on_white(tmp_path):
    source = tmp_path / "x.png"
    Image.new("RGBA", (800, 200), (255, 0, 0, 0)).save(source)
    with Image.open(io.BytesIO(thumbnails.small(source, 320, 72))) as found:
        assert found.size == (320, 80)
        assert found.getpixel((0, 0)) == (255, 255, 255)
    source.write_bytes(png("red")[:40])
    with pytest.raises(thumbnails.Unreadable, match=r"x\.png"):
        thumbnails.small(source, 320, 72)
