"""Inference as a user runs it: the launcher's own commands, real msrun, real workers, on CPU."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_main_job import Here, wait_for

from jobs import layout

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

PAINT = ("submit", "infer", "--backend", "local", "--wait", "--set", "batch_size=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Here:
    return Here(tmp_path_factory.mktemp("infer"))


@pytest.fixture(scope="module")
def broken(random_sdxl: Path, place: Here) -> Path:
    """Return a pipeline whose first text encoder knows no number for the word blue."""
    from safetensors.numpy import load_file, save_file
    from transformers import CLIPTokenizer

    folder = place.folder / "broken"
    shutil.copytree(random_sdxl, folder)
    number = CLIPTokenizer.from_pretrained(str(folder), subfolder="tokenizer")("blue").input_ids[1]
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    weights = load_file(path)
    (name,) = (name for name in weights if "token_embedding" in name)
    weights[name] = weights[name].copy()
    weights[name][number] = np.nan
    save_file(weights, path, {"format": "np"})
    return folder


def test_a_run_with_a_picture_that_fails_ends_with_74_and_names_its_line(
    place: Here, broken: Path
) -> None:
    (place.folder / "four.txt").write_text("a red circle\na blue circle\n\na dot\na red square\n")
    paint = (*PAINT, "--model", str(broken), "--prompts", "four.txt", "--name", "most")
    paint += ("--set", "width=64", "--set", "height=64", "--set", "precision=fp32")
    _, err = place.run(*paint, "--npus", "2", "--steps", "2", code=70)
    reason = "3 of 4 pictures; 1 failed: lines 2 (not a number; choose a wider precision)"
    termination = (place.runs / "most" / "local" / "termination").read_text()
    assert termination == f"74 pictures failed: {reason}\n"
    assert reason in err
    out, _ = place.run("status", "most")
    assert "3 of 4 pictures, 1 failed: lines 2" in out
    assert "failed (74, pictures failed)" in out
    assert [row["line"] for row in place.records("most", layout.PICTURES)] == [1, 4, 5]
    result = place.result("most")
    assert result["failed"] == [2]
    assert set(result["split_s"]) >= {"start", "compile", "text", "denoise", "decode", "encode"}
    split = result["split_s"]
    after = ("start", "compile", "text", "denoise", "decode", "waiting")
    assert sum(split[name] for name in after) == pytest.approx(result["seconds"], abs=0.04)
    assert min(split.values()) >= 0
    out, _ = place.run("status", "most")
    assert "seconds: start " in out
    assert "; beside it encode " in out
    assert result["s_per_step"]["EulerDiscrete"] > 0
    assert result["img_s"] > result["img_s_overall"] > 0
    _, err = place.run(*paint, "--npus", "2", "--steps", "2", code=73)
    assert "failed for good" in err


def test_a_folder_with_pictures_of_another_run_is_refused(place: Here) -> None:
    """As a store looks in which a run's records were removed, and not its pictures."""
    stranger = place.runs / "stranger"
    (stranger / "images").mkdir(parents=True)
    (stranger / "images" / "00001-00.png").write_bytes(b"somebody's")
    (place.folder / "one.txt").write_text("a red circle\n")
    _, err = place.run(*PAINT, "--prompts", "one.txt", "--name", "stranger", code=73)
    assert "stranger" in err
    assert (stranger / "images" / "00001-00.png").read_bytes() == b"somebody's"


def pixels(path: Path) -> bytes:
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        return np.asarray(picture).tobytes()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixty_prompts_are_the_same_pictures_however_they_are_painted(place: Here) -> None:
    kinds = ['"scheduler": "EulerAncestral"', '"steps": 3', '"guidance": 3', '"seed": 4']
    lines = [
        f'{{"prompt": "a red circle, number {n}", {kinds[n % 4]}}}'
        if n % 3
        else f'{{"prompt": "{n}"}}'
        for n in range(60)
    ]
    (place.folder / "sixty.jsonl").write_text("\n".join(lines))
    paint = (*PAINT, "--prompts", "sixty.jsonl", "--steps", "4", "--set", "batch_size=4")

    def painted(name: str, *flags: str) -> dict[str, bytes]:
        place.run(*paint, "--name", name, *flags)
        return {path.name: pixels(path) for path in (place.runs / name / "images").iterdir()}

    whole = painted("sixty-one", "--npus", "1")
    assert len(set(whole.values())) == len(whole) == 60
    assert painted("sixty-two", "--npus", "2") == whole
    for first in range(4):  # each line once, and always without its neighbours
        only = ",".join(str(line) for line in range(first + 1, 61, 4))
        some = painted(f"sixty-only-{first}", "--npus", "1", "--only", only)
        assert len(some) == 15
        assert some.items() <= whole.items()

    flags = (*paint, "--name", "sixty-killed", "--npus", "2")
    process = place.start(*flags)
    rows = place.runs / "sixty-killed" / layout.PICTURES
    wait_for(lambda: rows.exists() and rows.read_text().count("\n") >= 8)
    os.kill(place.supervisor("sixty-killed"), signal.SIGKILL)
    process.communicate(timeout=60)
    time.sleep(1)
    before = rows.read_text().count("\n")
    assert before < 60, "killed too late to prove anything"
    assert painted("sixty-killed", "--npus", "2") == whole
    assert place.result("sixty-killed")["pictures"] == 60


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_several_nodes_paint_the_pictures_of_one_and_a_lost_one_goes_on(place: Here) -> None:
    (place.folder / "some.txt").write_text(
        "\n".join(f"a red circle, number {n}" for n in range(16))
    )
    paint = (*PAINT, "--prompts", "some.txt", "--steps", "8", "--set", "width=64")
    place.run(*paint, "--set", "height=64", "--name", "some-one", "--npus", "1")
    root = place.runs / "some-nodes"
    spec = json.loads((place.runs / "some-one" / layout.SPEC).read_text())["spec"]

    def start(node: int, attempt: int) -> subprocess.Popen[bytes]:
        work = place.folder / f"node-{node}-{attempt}"
        work.mkdir()
        variables = {
            "JOB_SPEC": json.dumps(spec), "JOB_RUN": root.name, "JOB_UID": "u",
            "JOB_STORE": f"file://{place.runs}", "JOB_WORK": str(work), "JOB_DEVICE": "CPU",
            "JOB_THREADS": "1", "JOB_NODES": "2", "JOB_COMPLETION_INDEX": str(node),
        }  # fmt: skip
        with (work / "console.log").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "jobs.runtime"], env={**os.environ, **variables},
                cwd=work, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def rows(node: int) -> int:
        path = root / "nodes" / str(node) / layout.PICTURES
        return path.read_text().count("\n") if path.exists() else 0

    first, lost = start(0, 1), start(1, 1)
    wait_for(lambda: rows(1) >= 2)
    lost.kill()  # its workers die with it
    lost.wait()
    before = rows(1)
    assert before < 8, "killed too late to prove anything"
    again = start(1, 2)
    assert (first.wait(300), again.wait(300)) == (0, 0)
    found = place.records(root.name, layout.PICTURES)
    assert [row["line"] for row in found] == list(range(1, 17))
    assert {row["worker"] for row in found} == {0, 1}
    whole = {path.name: pixels(path) for path in (place.runs / "some-one" / "images").iterdir()}
    assert {path.name: pixels(path) for path in (root / "images").iterdir()} == whole
    result = place.result(root.name)
    assert (result["pictures"], result["asked"], result["failed"]) == (16, 16, [])
    assert f"restored={before}" in (place.folder / "node-1-2" / "console.log").read_text()
