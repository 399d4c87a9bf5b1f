"""How the small SDXL is made: training that resumes to the bit, tokenizers, and what ships."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from safetensors.numpy import load_file, save_file  # noqa: E402

from jobs import pipelines  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.environment import Environment  # noqa: E402
from jobs.tiny import MODEL, brush, captions, scenes  # noqa: E402
from jobs.tiny.recipe import __main__ as recipe  # noqa: E402
from jobs.tiny.recipe import autoencoder, fitting, language, pipeline, weights  # noqa: E402
from jobs.tiny.recipe.fitting import Plan, fit  # noqa: E402

WHOLE = 12_000_000
"""Bytes that may ship."""


class Line(ms.nn.Cell):
    """Squared error of a line through points."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = ms.Parameter(ms.Tensor([0.5, -0.5], ms.float32), name="slope")

    def construct(self, x: Any, y: Any) -> Any:
        return ms.ops.mean(ms.ops.square((x * self.slope).sum(-1) - y))


def fitted(place: Path, stop: int | None = None, steps: int = 9) -> np.ndarray:
    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        if step == stop:
            raise KeyboardInterrupt
        x = np.random.default_rng(step).standard_normal((8, 2)).astype(np.float32)
        return x, x @ np.array([2.0, 3.0], np.float32)

    ms.set_context(mode=ms.GRAPH_MODE)
    cell = Line()
    trained = {"slope": cell.slope}
    plan = Plan(steps=steps, learning_rate=0.1, warmup=2, average=0.5, save_every=2)
    return fit(cell, trained, batch, plan, place)["slope"]


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(on_cpu: None, tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", stop=5)
    assert np.array_equal(fitted(tmp_path / "cut"), whole)
    assert not np.array_equal(fitted(tmp_path / "short", steps=8), whole)
    curve = [json.loads(row) for row in (tmp_path / "cut" / "curve.jsonl").open()]
    assert [row["step"] for row in curve] == [2, 4, 6, 8, 9]
    assert (whole > [0.5, -0.5]).all(), "towards 2 and 3"


def test_a_loss_that_is_not_finite_ends_a_fit(on_cpu: None, tmp_path: Path) -> None:
    cell = Line()
    points = np.full((8, 2), np.nan, np.float32), np.zeros(8, np.float32)
    plan = Plan(steps=4, learning_rate=0.1, save_every=2)
    with pytest.raises(FloatingPointError, match="step 2"):
        fit(cell, {"slope": cell.slope}, lambda _: points, plan, tmp_path / "fit")
    assert not (tmp_path / "fit" / "state.safetensors").exists()


def test_a_vae_begins_with_the_right_colours(on_cpu: None) -> None:
    cells = {}
    for passing in (True, False):
        vae = autoencoder.build()
        weights.begin(vae, 3)
        if passing:
            before = {name: p.asnumpy().copy() for name, p in vae.parameters_and_names()}
            weights.pass_colours(vae)
            changed = [n for n, p in vae.parameters_and_names() if (p.asnumpy() != before[n]).any()]
            assert all(any(name.endswith(end) for name in changed) for end in weights.PASSES)
        cells[passing] = vae
    rows = list(scenes.COLOURS.values())
    plain = np.array(rows, np.float32)[:, :, None, None] / 127.5 - 1 + np.zeros((1, 1, 32, 32))
    fits = {}
    for passing, vae in cells.items():
        with eager():
            latents = vae.encode(ms.Tensor(plain, ms.float32))[0][:, :4]
            made = vae.decode(latents)[0].asnumpy().mean(axis=(2, 3)).ravel()
        fits[passing] = np.corrcoef(made, plain.mean(axis=(2, 3)).ravel())[0, 1]
    assert fits[True] > 0.9 > 0.5 > abs(fits[False])


@pytest.mark.parametrize("side", [32, 64, 128])
def test_parts_of_drawings_show_an_object_and_are_a_function_of_their_number(side: int) -> None:
    rows = autoencoder.parts(0, range(8, 24), side)
    assert (rows.shape, rows.dtype) == ((16, 3, side, side), np.float32)
    assert np.array_equal(rows[4:], autoencoder.parts(0, range(12, 24), side))
    assert not np.array_equal(rows, autoencoder.parts(1, range(8, 24), side))
    assert all(np.ptp(row) > 0.1 for row in rows)


def test_a_folder_of_another_recipe_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.json").write_text('{"seed": 1}')
    monkeypatch.setattr(sys, "argv", ["recipe", str(tmp_path), "--parts-only"])
    assert recipe.main() == 78
    assert "was begun with other drawings, encoders, phases" in caplog.text
    monkeypatch.setattr(sys, "argv", ["recipe", str(tmp_path), "--ship"])
    assert recipe.main() == 78
    assert "holds no checkpoint to ship" in caplog.text


def test_a_recipe_is_another_one_where_something_is_drawn_or_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {recipe.drawings()}
    with monkeypatch.context() as patched:
        patched.setattr(brush, "HALO", brush.HALO + 1)
        found.add(recipe.drawings())
    with monkeypatch.context() as patched:
        patched.setattr(captions, "LEADS", captions.LEADS[:1])
        found.add(recipe.drawings())
    assert len(found) == 3
    assert recipe.drawings() in found


def test_a_bad_seed_and_a_broken_recipe_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in ("-1", str(2**63)):
        monkeypatch.setattr(sys, "argv", ["recipe", str(tmp_path), "--seed", seed])
        with pytest.raises(SystemExit, match="2"):
            recipe.main()
    assert not list(tmp_path.iterdir())
    (tmp_path / "recipe.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["recipe", str(tmp_path)])
    assert recipe.main() == 78
    assert "is no recipe; take a new folder" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_tokenizers_are_clips(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    texts = [language.told(0, number)[0] for number in range(500)]
    size = language.write_tokenizers(tmp_path, texts)
    ids = []
    for name in pipeline.TOKENIZERS:
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path / name)
        row = tokenizer(texts[3], padding="max_length", max_length=77).input_ids
        assert tokenizer.decode(row, skip_special_tokens=True).strip("! ") == texts[3]
        assert (row[0], max(row)) == (size - 2, size - 1), "where CLIP's pooling looks for the end"
        ids.append(row)
    end = ids[0].index(size - 1)
    assert ids[0][: end + 1] == ids[1][: end + 1]
    assert set(ids[0][end:]) == {size - 1}
    assert set(ids[1][end + 1 :]) == {0}, "padded with `!`, as SDXL's second one is"


def test_half_of_a_folder_keeps_its_names_and_its_settings(tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    (whole / "unet").mkdir(parents=True)
    (whole / "model_index.json").write_text("{}")
    (whole / "unet" / "notes.md").write_text("not of a pipeline")
    save_file({"w": np.array([1.0001, 2.0], np.float32)}, whole / "unet" / "x.safetensors")
    (half / "old").mkdir(parents=True)
    pipeline.halve(whole, half, "what it is")
    assert sorted(path.name for path in half.rglob("*") if path.is_file()) == [
        "README.md", "model_index.json", "x.safetensors",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path != whole] == ["half"]
    assert not (half / "old").exists()
    [array] = load_file(half / "unet" / "x.safetensors").values()
    assert (array.dtype, array.tolist()) == (np.float16, [1.0, 2.0])
    assert (half / "unet" / "x.safetensors").stat().st_mode & 0o444 == 0o444


def test_what_ships_is_small_whole_and_described(tmp_path: Path) -> None:
    env = Environment(spec="", run="r", store=str(tmp_path), uid="u", work=tmp_path)
    assert pipelines.locate("tiny", "main", env) == MODEL
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) <= WHOLE
    numbers = {}
    for part, name in pipelines.WEIGHTS.items():
        arrays = load_file(MODEL / part / name)
        numbers[part] = sum(array.size for array in arrays.values())
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
        assert all(np.isfinite(array).all() for array in arrays.values())
    assert numbers["unet"] <= 3_000_000
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    scaling = pipelines.config(MODEL, "vae")["scaling_factor"]
    assert f"{scaling}" in card
    assert f"{sum(numbers.values()) / 1e6:.2f} million" in card


@pytest.mark.slow
def test_the_whole_recipe_goes_on_after_a_stop_in_each_stage(
    on_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far too short to paint; what was made in pieces has the bits of what was made at once."""
    short = Plan(steps=3, learning_rate=1e-3, warmup=1, save_every=1)
    monkeypatch.setattr(autoencoder, "PHASES", ((32, short), (64, short)))
    monkeypatch.setattr(language, "PLAN", short)
    for name, value in {"PICTURES": 6, "LEAST_PSNR": -99.0, "LEAST_ACCURACY": 0.0}.items():
        monkeypatch.setattr(recipe, name, value)
    few = {"steps": 4, "batch_size": 2, "save_every": 2, "warmup_steps": 1, "keep_every": 0}
    monkeypatch.setattr(recipe, "TRAINING", recipe.TRAINING | few)
    monkeypatch.setattr(autoencoder, "measure", lambda *_: (1.5, {"flat": 1.0}))

    def made(folder: Path, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["recipe", str(folder), *words])
        return recipe.main()

    assert made(tmp_path / "whole") == 0
    real, calls = fitting._save, []

    def cut(folder: Path, *more: Any) -> None:
        real(folder, *more)
        calls.append(folder.name)
        if len(calls) in (2, 5, 9):  # in either phase of the VAE, and in the encoders
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_save", cut)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "cut")
    assert made(tmp_path / "cut", "--parts-only") == 0
    assert made(tmp_path / "cut") == 0
    assert made(tmp_path / "cut") == 0, "all is done"
    names = [path.relative_to(tmp_path / "whole" / "model") for path in pieces(tmp_path / "whole")]
    assert len(names) > 10
    for name in names:
        one, other = (tmp_path / where / "model" / name for where in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), name
    assert "16 samples in 4 steps" in (tmp_path / "cut" / "model" / "README.md").read_text()


def pieces(folder: Path) -> list[Path]:
    return [path for path in (folder / "model").rglob("*") if path.is_file()]
