"""Captioned pictures: every form that is read, every fault that is named with its path."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import data
from jobs.digests import Digests
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.specs import SHIPPED_DATA, TrainSpec
from jobs.tiny import folders


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment(spec="", run="r", store="", uid="u", work=tmp_path / "work")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folders.write(folder, folders.flat(0, range(3), 64))
    return folder


def load(folder: Path | str, env: Environment, **more: object) -> data.Captioned:
    return data.load(TrainSpec.model_validate({"data": str(folder), **more}), env)


CAPTIONS = tuple((caption,) for _, caption in folders.flat(0, range(3), 64))


def test_metadata_jsonl(folder: Path, env: Environment) -> None:
    assert load(folder, env).captions == CAPTIONS


def test_metadata_csv(folder: Path, env: Environment) -> None:
    (folder / "metadata.jsonl").unlink()
    rows = [f'0000{i}.png,"{caption}"' for i, (caption,) in enumerate(CAPTIONS)]
    (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows))
    assert load(folder, env).captions == CAPTIONS


def test_a_text_file_beside_each_picture(folder: Path, env: Environment) -> None:
    (folder / "metadata.jsonl").unlink()
    for i, (caption,) in enumerate(CAPTIONS):
        (folder / f"0000{i}.txt").write_text(caption + "\n")
    assert load(folder, env).captions == CAPTIONS
    (folder / "00001.txt").write_text("one\n\n  another \r\n")
    assert load(folder, env).captions == (CAPTIONS[0], ("one", "another"), CAPTIONS[2])
    (folder / "00001.txt").write_text(" \n")
    with pytest.raises(BadData, match=r"00001\.png: has no caption"):
        load(folder, env)


def test_a_picture_may_have_several_captions(folder: Path, env: Environment) -> None:
    import datasets
    import pandas as pd

    metadata = folder / "metadata.jsonl"
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    lines[1]["text"] = ["one", "another"]
    expected = (CAPTIONS[0], ("one", "another"), CAPTIONS[2])
    metadata.write_text("\n".join(map(json.dumps, lines)))
    assert load(folder, env).captions == expected
    twice = [lines[0], {**lines[1], "text": "one"}, lines[2], {**lines[1], "text": "another"}]
    metadata.write_text("\n".join(map(json.dumps, twice)))
    assert load(folder, env).captions == expected
    for wrong in ([], ["one", " "], ["one", 2], 3):
        lines[1]["text"] = wrong
        metadata.write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(BadData, match=r"00001\.png: has no caption in column 'text'"):
            load(folder, env)
    metadata.unlink()
    names = [line["file_name"] for line in lines]
    table = pd.DataFrame({"file_name": names, "text": [list(one) for one in expected]})
    table.to_parquet(folder / "metadata.parquet")
    assert load(folder, env).captions == expected
    rows = {"image": [str(folder / name) for name in names], "text": table["text"].tolist()}
    set_ = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    set_.to_parquet(str(folder.parent / "set.parquet"))
    assert load(folder.parent / "set.parquet", env).captions == expected


def test_what_is_not_trained_on_is_named(
    folder: Path, env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / "a.tif")
    (folder / "notes.md").write_text("x")
    (folder / ".DS_Store").write_text("x")
    with pytest.raises(BadData, match=r"a\.tif: has no row in .*metadata\.jsonl"):
        load(folder, env)
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + '{"file_name": "a.tif", "text": "red"}\n')
    Image.new("RGB", (64, 64), "red").save(folder / "b.sgi")
    Image.new("RGB", (64, 64), "red").save(folder / "c.pcx")
    metadata.write_text(metadata.read_text() + '{"file_name": "b.sgi", "text": "red"}\n')
    with caplog.at_level("INFO", "jobs.data"):
        found = load(folder, env)
    assert [Path(found.name(index)).name for index in (-2, -1)] == ["a.tif", "b.sgi"]
    assert found.views(4, 64)[0].pixels[:, 0, 0].tolist() == [1, -1, -1]
    assert "data=ignored files=2, as c.pcx" in caplog.text
    metadata.unlink()
    for name in ("00000", "00001", "00002", "a", "c"):
        (folder / f"{name}.txt").write_text("x")
    with pytest.raises(BadData, match=r"c\.pcx: has a caption and is none of \.png, "):
        load(folder, env)
    (folder / "c.pcx").unlink()
    caplog.clear()
    with caplog.at_level("INFO", "jobs.data"):
        assert len(load(folder, env).captions) == 4
    assert "data=ignored files=3, as b.sgi" in caplog.text, "and the text of nothing, and the notes"


def test_parquet(folder: Path, env: Environment, tmp_path: Path) -> None:
    import datasets

    rows = {"image": [str(folder / f"0000{i}.png") for i in range(3)], "text": list(CAPTIONS)}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "set.parquet"))
    found = load(tmp_path / "set.parquet", env)
    assert found.captions == CAPTIONS
    assert np.array_equal(found.views(1, 64)[0].pixels, load(folder, env).views(1, 64)[0].pixels)


@pytest.mark.parametrize("name", SHIPPED_DATA)
def test_what_ships_is_drawn_at_first_use(name: str, env: Environment) -> None:
    found = load(name, env)
    wanted = list(folders.styled(folders.STYLES[name]))
    assert found.captions == tuple((caption,) for _, caption in wanted)
    for index in (0, 47, 48, 95):
        drawn = np.asarray(wanted[index][0], np.float32).transpose(2, 0, 1) / 127.5 - 1
        assert np.allclose(found.views(index, 128)[0].pixels, drawn, atol=1e-6)


def test_a_picture_is_scaled_cropped_and_described(tmp_path: Path, env: Environment) -> None:
    wide = np.zeros((100, 200, 3), np.uint8)
    wide[:, 100:] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("half black, half white")
    picture = load(tmp_path, env).views(0, 50)[0]
    assert picture.pixels.shape == (3, 50, 50)
    assert picture.pixels[:, :, :20].max() == -1.0
    assert picture.pixels[:, :, 30:].min() == 1.0
    # Original 100 x 200, scaled to 50 x 100, cut 25 from the left; target 50 x 50.
    assert picture.time_ids.tolist() == [100, 200, 0, 25, 50, 50]


def test_a_very_long_picture_fits_into_memory(tmp_path: Path, env: Environment) -> None:
    Image.new("RGB", (2, 20000), "red").save(tmp_path / "long.png")
    (tmp_path / "long.txt").write_text("a red line")
    picture = load(tmp_path, env).views(0, 512)[0]
    assert picture.pixels.shape == (3, 512, 512)
    assert picture.time_ids.tolist()[:2] == [20000, 2]


def test_greyscale_and_alpha_become_rgb(tmp_path: Path, env: Environment) -> None:
    for name, mode in (("a", "L"), ("b", "RGBA"), ("c", "P")):
        Image.new(mode, (32, 32)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    found = load(tmp_path, env)
    assert all(found.views(i, 32)[0].pixels.shape == (3, 32, 32) for i in range(3))


def test_a_broken_picture_is_named(folder: Path, env: Environment) -> None:
    whole = (folder / "00001.png").read_bytes()
    for wreck in (whole[:100], b"", b"not a picture"):
        (folder / "00001.png").write_bytes(wreck)
        with pytest.raises(BadData, match=r"00001\.png: cannot be read as a picture") as caught:
            load(folder, env).views(1, 64)
        assert "\n" not in str(caught.value)


def test_a_digest_is_of_the_bytes_wherever_they_lie(
    folder: Path, env: Environment, tmp_path: Path
) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"image": [str(folder / "00001.png")], "text": ["x"]})
    table.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "set.parquet"))
    digests = Digests.open(tmp_path / "digests", 0)
    expected = hashlib.sha256((folder / "00001.png").read_bytes()).hexdigest()
    assert load(folder, env).digest(1, digests) == expected
    assert load(tmp_path / "set.parquet", env).digest(0, digests) == expected
    found = load(folder, env)
    (folder / "00001.png").unlink()
    with pytest.raises(BadData, match=r"00001\.png: cannot be read \(No such file"):
        found.digest(1, digests)


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, memory = tmp_path / "weights", tmp_path / "digests"
    path.write_bytes(b"old")
    os.utime(path, ns=(10**18, 10**18))

    def digest() -> str:
        digests = Digests.open(memory, 0)
        found = digests.of(path)
        digests.save()
        return found

    assert digest() == digest() == hashlib.sha256(b"old").hexdigest()
    facts = path.stat()
    path.write_bytes(b"lie")  # same size and time: remembered, which shows that it is
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert digest() == hashlib.sha256(b"old").hexdigest()
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert digest() == hashlib.sha256(b"lie").hexdigest()
    path.write_bytes(b"new")  # just now, so not remembered
    assert digest() == hashlib.sha256(b"new").hexdigest()
    assert json.loads((memory / "0.json").read_text()) == {}
    (memory / "0.json").write_text("[broken")
    assert digest() == hashlib.sha256(b"new").hexdigest()


def test_faults_of_a_folder_are_named(folder: Path, env: Environment) -> None:
    metadata = folder / "metadata.jsonl"
    good = metadata.read_text()

    def refused(text: str | None, match: str) -> None:
        metadata.unlink(missing_ok=True)
        if text is not None:
            metadata.write_text(text)
        with pytest.raises(BadData, match=match):
            load(folder, env)

    rows = [json.loads(line) for line in good.splitlines()]
    refused(None, r"00000\.png: has no caption; put a metadata\.jsonl")
    refused("\n".join(good.splitlines()[:2]), r"00002\.png: has no row in .*metadata\.jsonl")
    refused(good.replace("00002.png", "00009.png"), r"00009\.png, which is not in the folder")
    refused(
        good.replace('"text"', '"caption"'),
        "no column 'text'; it has file_name, caption; set caption_column",
    )
    refused("{not json", "cannot be read")
    refused(
        "\n".join(json.dumps({**row, "text": " "}) for row in rows), r"00000\.png: has no caption"
    )
    refused(
        "\n".join(json.dumps({**row, "text": None}) for row in rows), r"00000\.png: has no caption"
    )
    metadata.write_text(good.replace('"text"', '"caption"'))
    assert load(folder, env, caption_column="caption").captions == CAPTIONS


def test_what_is_no_data_set_is_refused(tmp_path: Path, env: Environment) -> None:
    with pytest.raises(BadData, match="no picture in it"):
        load(tmp_path, env)
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(BadData, match="must be parquet"):
        load(tmp_path / "x.bin", env)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadData, match="not a parquet"):
        load(tmp_path / "x.parquet", env)
    with pytest.raises(BadSpec, match="no such file or folder"):
        load(tmp_path / "missing", env)


def test_a_hub_that_cannot_be_reached_is_a_retry(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="no-such-owner/no-such-set") as caught:
        load("no-such-owner/no-such-set", replace(env))
    assert "\n" not in str(caught.value)
