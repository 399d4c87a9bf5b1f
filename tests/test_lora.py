"""LoRA files of others in our weights: against numpy, and against mindone's pipeline with the file.

The same numbers are written in diffusers' naming and in kohya's, with an alpha unlike the rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from safetensors.numpy import save_file  # noqa: E402

from jobs import draws, lora, model, schedules  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.errors import BadSpec  # noqa: E402
from jobs.sampling import Painter, Request  # noqa: E402
from jobs.tiny.recipe.pipeline import SDXL_SCHEDULER  # noqa: E402

ALPHA, RANK = 3.0, 2
SCALE = np.float32(ALPHA / RANK)
Arrays = dict[str, np.ndarray]
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@pytest.fixture(scope="module")
def folder(random_sdxl: Path) -> Path:
    ms.set_context(mode=ms.GRAPH_MODE)
    return random_sdxl


@pytest.fixture(scope="module")
def cells(folder: Path) -> dict[str, Any]:
    first, second = model.load_text_encoders(folder, ms.float32).cells
    unet = model.load_unet(folder, ms.float32)
    return {"unet": unet, "text_encoder": first, "text_encoder_2": second}


@pytest.fixture(scope="module")
def pairs(cells: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return down and up of every attention projection of all three parts."""
    rng = np.random.default_rng(5)
    # mindone tells the naming of a text encoder's LoRA by its output projections.
    ends = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj", "out_proj")
    return {
        name: (
            0.2 * rng.standard_normal((RANK, weight.shape[1])).astype(np.float32),
            0.2 * rng.standard_normal((weight.shape[0], RANK)).astype(np.float32),
        )
        for name, weight in lora.modules(cells).items()
        if name.endswith(ends)
    }


def diffusers(pairs: dict[str, Any]) -> Arrays:
    """Return the arrays as diffusers names them, whose file has no place for alpha."""
    rows: Arrays = {}
    for name, (down, up) in pairs.items():
        rows[f"{name}.lora_A.weight"] = down
        rows[f"{name}.lora_B.weight"] = up * SCALE
    return rows


def kohya(pairs: dict[str, Any]) -> Arrays:
    """Return the arrays as kohya's trainer names them."""
    rows: Arrays = {}
    for name, (down, up) in pairs.items():
        part, _, path = name.partition(".")
        stem = f"{KOHYA[part]}_{path.replace('.', '_')}"
        rows[f"{stem}.lora_down.weight"] = down
        rows[f"{stem}.lora_up.weight"] = up
        rows[f"{stem}.alpha"] = np.array(ALPHA, np.float32)
    return rows


def written(path: Path, rows: Arrays) -> Path:
    save_file(rows, path, {"format": "pt"})
    return path


def weights(cells: dict[str, Any]) -> Arrays:
    return {name: p.asnumpy().copy() for name, p in lora.modules(cells).items()}


def test_both_namings_change_the_weights_alike(
    cells: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    before = weights(cells)
    merged = []
    for name, rows in (("d", diffusers(pairs)), ("k", kohya(pairs))):
        path = written(tmp_path / f"{name}.safetensors", rows)
        pristine = lora.merge(cells, lora.read(path), 0.8)
        merged.append(weights(cells))
        lora.restore(cells, pristine)
    assert len(pairs) > 30
    assert {name.partition(".")[0] for name in pairs} == set(KOHYA)
    for name, (down, up) in pairs.items():
        expected = before[name] + 0.8 * ALPHA / RANK * (up.astype(np.float64) @ down)
        assert np.abs(merged[0][name] - expected).max() < 1e-5
        assert np.abs(merged[0][name] - before[name]).max() > 0.01
    for name, value in weights(cells).items():
        assert np.array_equal(merged[0][name], merged[1][name]), "to the bit"
        assert np.array_equal(value, before[name]), "put back"
        assert name in pairs or np.array_equal(merged[0][name], before[name])


def test_a_convolution_is_changed_as_a_product(cells: dict[str, Any], tmp_path: Path) -> None:
    name = "unet.down_blocks.0.resnets.0.conv1"
    before = weights(cells)[name]
    rng = np.random.default_rng(6)
    down = rng.standard_normal((RANK, *before.shape[1:])).astype(np.float32)
    up = rng.standard_normal((before.shape[0], RANK, 1, 1)).astype(np.float32)
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    rows = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    rows = {key: array.astype(np.float16) for key, array in rows.items()}
    pristine = lora.merge(cells, lora.read(written(tmp_path / "c.safetensors", rows)), 1.0)
    expected = before + np.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    found = weights(cells)[name]
    lora.restore(cells, pristine)
    assert np.abs(found - expected).max() < 0.02, "fp16's rounding"
    assert np.abs(found - before).max() > 1


def test_what_does_not_fit_changes_nothing(
    cells: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    before = weights(cells)
    rows = diffusers(pairs)
    last = max(rows)
    rows[last] = rows[last][:, 1:]
    path = written(
        tmp_path / "bad.safetensors", {k: np.ascontiguousarray(v) for k, v in rows.items()}
    )
    with pytest.raises(BadSpec) as caught:
        lora.merge(cells, lora.read(path), 1.0, "lora bad")
    assert str(caught.value).startswith(f"lora bad: {last} [")
    after = weights(cells)
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_numbers_that_are_not_finite_change_nothing(
    cells: dict[str, Any], pairs: dict[str, Any]
) -> None:
    before = weights(cells)
    for end, value in (
        (".lora_up.weight", np.nan),
        (".lora_down.weight", np.inf),
        (".alpha", np.nan),
    ):
        rows = kohya(pairs)
        last = max(key for key in rows if key.endswith(end))
        rows[last] = np.full_like(rows[last], value)
        with pytest.raises(BadSpec, match=f"lora bad: {last} holds numbers that are not finite"):
            lora.merge(cells, rows, 1.0, "lora bad")
    after = weights(cells)
    assert all(np.array_equal(after[name], value) for name, value in before.items())


@pytest.mark.parity
@pytest.mark.parametrize("naming", [diffusers, kohya])
def test_mindones_pipeline_paints_the_same_with_the_file(
    folder: Path, pairs: dict[str, Any], tmp_path: Path, naming: Any
) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    path = written(tmp_path / "x.safetensors", naming(pairs))
    request = Request(3, 1, "a red circle", "a blue square", 11, guidance=5.0)
    painter = Painter(folder, ms.float32, width=64, height=64, batch=1)
    plain = painter.sample([request], steps=3)
    assert painter.set_lora(lora.read(path), 0.8) == len(pairs)
    found = painter.sample([request], steps=3)

    pipe = StableDiffusionXLPipeline.from_pretrained(str(folder), mindspore_dtype=ms.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = schedules.configured(None, SDXL_SCHEDULER)
    with eager():
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
        pipe.fuse_lora(lora_scale=0.8)
        noise = draws.picture_noise(request.seed, request.line, request.image, (4, 8, 8))[None]
        out = pipe(
            prompt=request.prompt, negative_prompt=request.negative, width=64, height=64,
            num_inference_steps=3, guidance_scale=request.guidance, latents=ms.Tensor(noise),
            output_type="latent",
        )[0]  # fmt: skip
    expected = out.asnumpy()
    assert np.abs(found - plain).max() > 0.01 * np.abs(expected).max(), "it does something"
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
