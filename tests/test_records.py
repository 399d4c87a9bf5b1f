from __future__ import annotations

import json

from jobs import commits, layout
from jobs.stores import FileStore
from launcher import progress, records

TRAIN = {"kind": "train", "steps": 60}


def test_a_run_without_records_has_no_progress(tmp_path):
    found = records.progress(FileStore(tmp_path), "r", TRAIN)
    assert found == records.Progress(steps=60, success=False)


def test_a_success_is_what_the_newest_attempt_says_or_an_old_result(tmp_path):
    store = FileStore(tmp_path)

    def success(**records_of: object) -> bool | None:
        for name, row in records_of.items():
            store.write(f"r/{name}.json", json.dumps(row).encode())
        return records.progress(store, "r", TRAIN).success

    assert not success()
    assert success(result={"kind": "train"})
    assert not success(result={"kind": "infer", "failed": [3]})
    claim = {"epoch": 2}
    assert not success(claim=claim, end={"attempt": 2, "code": 69, "reason": "away"})
    assert success(claim=claim, end={"attempt": 2, "code": 0, "reason": "all is there"})


def test_training_is_told_by_its_newest_whole_row(tmp_path):
    store = FileStore(tmp_path)
    rows = [{"step": s, "loss": 1 / s, "ms_per_step": 500.0, "img_s": 4.0} for s in (10, 20)]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"step": 30, "lo'
    store.write("r/metrics.jsonl", text.encode())
    store.write("r/spec.json", b'{"attempts": 3}')
    found = records.progress(store, "r", TRAIN)
    assert (found.step, found.loss, found.images_per_second) == (20, 0.05, 4.0)
    assert found.seconds_left == 40 * 0.5
    assert (found.attempts, found.committed) == (3, None)


def test_only_committed_steps_count(tmp_path):
    store = FileStore(tmp_path / "store")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "f").write_text("x")
    for step in (20, 40):
        commits.commit(store, layout.key("r", layout.CHECKPOINTS, layout.step_name(step)), folder)
    store.write("r/checkpoints/step-00000060/MANIFEST.json", b"{}")
    assert records.newest_step(store, "r") == 40


def test_pictures_are_counted_once_each(tmp_path):
    store = FileStore(tmp_path)
    row = {"file": "images/00001-00.png", "sha256": "0"}
    store.write("r/manifest.jsonl", "\n".join([json.dumps(row)] * 2 + ['{"file": 1}']).encode())
    spec = {"kind": "infer", "images": 3, "prompts": [{"line": 1}, {"line": 2}]}
    found = records.progress(store, "r", spec)
    assert (found.pictures, found.asked) == (1, 6)


def test_prompts_in_the_store_are_counted_there(tmp_path):
    store = FileStore(tmp_path)
    store.write(
        "cache/prompts/x.jsonl", b'{"line": 1, "prompt": "a"}\n{"line": 2, "prompt": "b"}\n'
    )
    spec = {"kind": "infer", "images": 2, "prompts": {"key": "cache/prompts/x.jsonl"}}
    assert records.progress(store, "r", spec).asked == 4


def test_pictures_asked_for_are_those_of_the_rows_and_the_selection(tmp_path):
    store = FileStore(tmp_path)
    rows = [{"line": 1}, {"line": 3, "images": 5}, {"line": 4, "images": 2}]
    key = layout.prompts_key("0" * 64)
    store.write(key, "".join(json.dumps(row) + "\n" for row in rows).encode())
    for prompts in (rows, {"key": key}):
        spec = {"kind": "infer", "images": 3, "prompts": prompts}
        assert records.progress(store, "r", spec).asked == 3 + 5 + 2
        assert records.progress(store, "r", {**spec, "only": "1,4.1"}).asked == 3 + 1
        assert records.progress(store, "r", {**spec, "only": "2-4"}).asked == 5 + 2


def test_failures_and_speed_of_inference_are_told(tmp_path):
    store = FileStore(tmp_path)
    failures = [{"line": line, "image": 0, "reason": "black"} for line in (4, 4, 9)]
    result = {"failures": failures, "img_s": 1.25, "s_per_step": {"LMS": 0.5}}
    store.write("r/result.json", json.dumps(result).encode())
    spec = {"kind": "infer", "prompts": [{"line": line} for line in range(1, 11)]}
    found = records.progress(store, "r", spec)
    assert found.failed == (4, 4, 9)
    words = progress.words("infer", found)
    assert words == "0 of 10 pictures, 3 failed: lines 4 9, 1.25 img/s, LMS 0.5 s/step"
    split = {"start": 9.0, "compile": 3.5, "text": 0.1, "denoise": 80.0, "decode": 7.0,
             "waiting": 2.9, "encode": 2.0, "painting": 90.0, "upload": 1.5}  # fmt: skip
    brief = "0 of 10 pictures, 3 failed: lines 4 9, 1.25 img/s"
    assert progress.words("infer", found, brief=True) == brief
    store.write("r/result.json", json.dumps({"split_s": split}).encode())
    assert progress.words("infer", records.progress(store, "r", spec)) == (
        "0 of 10 pictures, seconds: start 9, compile 3.5, painting 90 (text 0.1, denoise 80, "
        "decode 7, waiting 2.9; beside it encode 2, upload 1.5)"
    )
    found = records.progress(store, "r", spec)
    assert progress.words("infer", found, brief=True) == "0 of 10 pictures"
    store.write("r/result.json", b'{"failures": 3, "split_s": 4, "s_per_step": [1], "img_s": "x"}')
    assert progress.words("infer", records.progress(store, "r", spec)) == "0 of 10 pictures"
