"""Moments and embeddings on the small SDXL: mindone's numbers, the same from a hit and a miss."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from PIL import Image  # noqa: E402

from jobs import data, draws, latents, layout, model  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.environment import Environment, Worker  # noqa: E402
from jobs.errors import BadData  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402
from jobs.tiny import folders  # noqa: E402

COUNT, SIZE = 18, 64  # two shards, the second one short
LONG = "a red circle " * 40


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folders.write(folder, folders.flat(0, range(COUNT), 96))
    return folder


class Runs:
    """Attempts with one store between them."""

    def __init__(self, place: Path, folder: Path, pictures: Path) -> None:
        self.place, self.folder, self.pictures = place, folder, pictures
        self.number = 0

    def encode(self, **more: object) -> latents.Encoded:
        self.number += 1
        work = self.place / f"run-{self.number}"
        store = str(self.place / "store")
        env = Environment(
            spec="", run="r", store=store, uid="u", work=work, cache=work / "c", device="CPU"
        )
        plain = {"data": str(self.pictures), "resolution": SIZE, "precision": "fp32"}
        spec = TrainSpec.model_validate(plain | more)
        kind = model.DTYPES[spec.precision]
        return latents.encode(
            data.load(spec, env), self.folder, kind, spec, replace(env), Worker(0, 1)
        )

    def keys(self) -> set[str]:
        folder = self.place / "store" / layout.CACHE / "latents"
        return {path.parent.name for path in folder.glob(f"*/{layout.COMMITTED}")}


@pytest.fixture
def runs(tmp_path: Path, random_sdxl: Path, pictures: Path) -> Runs:
    return Runs(tmp_path, random_sdxl, pictures)


def rows(encoded: latents.Encoded) -> list[np.ndarray]:
    found = [
        encoded.row(index, view) for index in range(encoded.count) for view in range(encoded.views)
    ]
    return [np.stack(column) for column in zip(*found, strict=True)]


def test_the_numbers_are_mindones_and_a_hit_gives_the_same(
    runs: Runs, random_sdxl: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    with caplog.at_level(logging.INFO, "jobs.latents"):
        cold = rows(runs.encode())
    assert "latents=miss shards_found=0 made=4 views=1" in caplog.text
    moments, time_ids, text, pooled = cold
    with eager():
        pipe = StableDiffusionXLPipeline.from_pretrained(
            str(random_sdxl), mindspore_dtype=ms.float32
        )
        picture = np.asarray(Image.open(runs.pictures / "00017.png").convert("RGB").resize(
            (SIZE, SIZE), Image.Resampling.LANCZOS), np.float32)  # fmt: skip
        pixels = ms.Tensor((picture / 127.5 - 1).transpose(2, 0, 1)[None])
        posterior = pipe.vae.diag_gauss_dist
        mean = posterior.mode(pipe.vae.encode(pixels)[0]).asnumpy()[0]
        [(_, caption)] = folders.flat(0, range(17, 18))
        embeds, _, pooled_embeds, _ = pipe.encode_prompt(
            caption, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    assert np.abs(moments[17, :4] - mean).max() < 1e-5
    assert np.abs(text[17] - embeds.asnumpy()[0]).max() < 1e-5
    assert np.abs(pooled[17] - pooled_embeds.asnumpy()[0]).max() < 1e-5
    assert time_ids[17].tolist() == [96, 96, 0, 0, SIZE, SIZE]
    assert np.abs(moments[17] - moments[16]).max() > 1e-3, "equal rows would prove nothing"

    def not_loaded(*_arguments: Any) -> None:
        raise AssertionError("a hit needs no frozen part")

    monkeypatch.setattr(model, "load_vae", not_loaded)
    monkeypatch.setattr(model, "load_text_encoders", not_loaded)
    monkeypatch.setattr(model, "load_tokenizers", not_loaded)
    with caplog.at_level(logging.INFO, "jobs.latents"):
        warm = rows(runs.encode())
    assert "latents=hit shards_found=4 made=0" in caplog.text
    assert all(np.array_equal(left, right) for left, right in zip(cold, warm, strict=True))


def test_only_what_has_changed_is_made_anew(runs: Runs, pictures: Path) -> None:
    def new(**more: object) -> int:
        before = runs.keys()
        runs.encode(**more)
        return len(runs.keys() - before)

    assert new() == 4
    assert new(seed=9, learning_rate=1e-5, steps=3) == 0
    metadata = pictures / "metadata.jsonl"
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    lines[17]["text"] = "something else"
    metadata.write_text("\n".join(map(json.dumps, lines)))
    assert new() == 1, "the captions' second shard"
    Image.new("RGB", (96, 96), "red").save(pictures / "00017.png")
    assert new() == 1, "the pictures' second shard"
    assert new(resolution=32) == 2, "the pictures'"
    assert new(precision="fp16") == 4
    assert new(method="vanilla") == 0
    assert new(method="lora-te") == 2, "ids in the place of embeddings"


def test_each_caption_of_a_picture_is_encoded(runs: Runs, pictures: Path) -> None:
    plain = runs.encode()
    before = runs.keys()
    metadata = pictures / "metadata.jsonl"
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    own, other = lines[3]["text"], lines[17]["text"]
    lines[3]["text"] = [own, other]  # a digest of the first alone would not see it
    metadata.write_text("\n".join(map(json.dumps, lines)))
    encoded = runs.encode()
    assert len(runs.keys() - before) == 2, "captions move on by one"
    assert [encoded.variants(index) for index in range(COUNT)] == [1] * 3 + [2] + [1] * 14
    for index in range(COUNT):
        expected = [3, 17] if index == 3 else [index]
        for variant, same in enumerate(expected):
            row, known = encoded.row(index, 0, variant), plain.row(same, 0)
            assert all(map(np.array_equal, row[2:], known[2:])), (index, variant)
            assert np.array_equal(row[0], plain.row(index, 0)[0])
    changed = [
        index for index in range(COUNT)
        if encoded.samples[8 * index : 8 * index + 8] != plain.samples[8 * index : 8 * index + 8]
    ]  # fmt: skip
    assert changed == [3]


def test_other_weights_are_another_key(runs: Runs, tmp_path: Path, random_sdxl: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    runs.encode()
    before = runs.keys()
    copy = tmp_path / "copy"
    shutil.copytree(random_sdxl, copy)
    runs.folder = copy
    runs.encode()
    assert runs.keys() == before, "the same weights elsewhere"
    (path,) = (copy / "vae").glob("*.safetensors")
    weights = load_file(path)
    weights["encoder.conv_in.bias"] = weights["encoder.conv_in.bias"] + np.float32(1)
    save_file(weights, path, {"format": "pt"})
    runs.encode()
    assert len(runs.keys() - before) == 2


def test_crops_and_mirror_images_are_views_of_a_sample(runs: Runs, pictures: Path) -> None:
    Image.effect_noise((160, 96), 80).convert("RGB").save(pictures / "00003.png")
    more = {"crop": "random", "crops_per_picture": 2, "flip": True, "seed": 5}
    encoded = runs.encode(**more)
    assert encoded.views == 4
    lefts = [encoded.row(3, view)[1][3] for view in range(4)]
    room = 107 - SIZE  # 160 x 96 scaled to 107 x 64
    for number in (0, 1):
        across = int(draws.crop_place(5, 3, number)[0] * (room + 1))
        assert lefts[2 * number : 2 * number + 2] == [across, room - across]
    assert len(set(lefts)) == 4
    moments = [encoded.row(3, view)[0] for view in range(4)]
    assert all(np.abs(one - moments[0]).max() > 1e-3 for one in moments[1:])
    again = runs.encode(**more)
    assert all(map(np.array_equal, rows(encoded), rows(again)))
    before = runs.keys()
    runs.encode(**{**more, "seed": 6})
    assert len(runs.keys() - before) == 2, "other crops of every picture, the same captions"


def test_views_and_places_are_drawn_evenly_from_the_seed() -> None:
    drawn = np.array([draws.view(3, position, 4) for position in range(2000)])
    assert np.abs(np.bincount(drawn) - 500).max() < 80  # four deviations
    places = np.array([draws.crop_place(3, index, 1) for index in range(2000)])
    assert np.abs(places.mean(axis=0) - 0.5).max() < 0.026
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.09
    assert draws.crop_place(3, 7, 1) == tuple(places[7])
    assert len({draws.crop_place(3, 7, 0), draws.crop_place(4, 7, 1), tuple(places[7])}) == 3


def test_trained_encoders_get_ids_and_long_captions_are_counted_once(
    runs: Runs, pictures: Path, random_sdxl: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = pictures / "metadata.jsonl"
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    for number in (2, 17):
        lines[number]["text"] = LONG
    metadata.write_text("\n".join(map(json.dumps, lines)))
    for _ in range(2):
        caplog.clear()
        encoded = runs.encode(method="lora-te")
        assert caplog.text.count("captions=long count=2 of=18") == 1
    _, _, ids, ids_2 = encoded.row(0, 0)
    assert (ids.dtype, ids_2.dtype) == (np.int32, np.int32)
    first, second = model.load_tokenizers(random_sdxl)
    assert ids.tolist() == first(lines[0]["text"], padding="max_length", max_length=77).input_ids
    assert ids_2.tolist() == second(lines[0]["text"], padding="max_length", max_length=77).input_ids
    assert len(encoded.row(2, 0)[2]) == 77


def test_two_bytes_a_number_where_the_run_has_no_more(runs: Runs) -> None:
    """Latents differ by less than the half-precision UNet's input can tell."""
    exact, half = rows(runs.encode()), rows(runs.encode(precision="fp16"))
    scaled = np.abs(half[0][:, :4] - exact[0][:, :4]).max() * 0.13025
    assert 0 < scaled < 2.0**-11 * max(1.0, np.abs(exact[0][:, :4]).max() * 0.13025)
    deviation = [np.exp(0.5 * found[0][:, 4:]) for found in (exact, half)]
    assert np.allclose(*deviation, rtol=1e-2)
    path = next((runs.place / "store").rglob("*.safetensors"))
    assert path.stat().st_size > 0


def test_a_picture_that_cannot_be_read_is_named(runs: Runs, pictures: Path) -> None:
    (pictures / "00004.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(BadData, match=r"00004\.png: cannot be read as a picture"):
        runs.encode()
