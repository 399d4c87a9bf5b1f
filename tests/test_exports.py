"""The result of a whole fine-tune: a pipeline folder in diffusers' naming that mindone opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from safetensors.numpy import load_file  # noqa: E402
from untrained import VAE  # noqa: E402

from jobs import exports, model  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402


def spec(**given: Any) -> TrainSpec:
    return TrainSpec(**({"method": "vanilla", "model": "tiny", "precision": "fp32"} | given))


def test_mindone_opens_the_folder_with_the_trained_weights(
    random_sdxl: Path, tmp_path: Path
) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    rng = np.random.default_rng(0)
    unet = model.load_unet(random_sdxl, ms.float32)
    weights = {
        f"unet.{name}": rng.standard_normal(parameter.shape).astype(np.float32)
        for name, parameter in unet.parameters_and_names()
    }
    before = {path: path.read_bytes() for path in random_sdxl.rglob("*") if path.is_file()}
    given = spec(prediction_type="v_prediction")
    exports.write_pipeline(tmp_path / "new", random_sdxl, given, weights)
    assert before == {path: path.read_bytes() for path in random_sdxl.rglob("*") if path.is_file()}
    with eager():
        opened = StableDiffusionXLPipeline.from_pretrained(
            str(tmp_path / "new"), mindspore_dtype=ms.float32
        )
    found = dict(opened.unet.parameters_and_names())
    assert len(found) == len(weights)
    for name, parameter in found.items():
        assert np.array_equal(parameter.asnumpy(), weights[f"unet.{name}"]), name
    assert opened.scheduler.config["prediction_type"] == "v_prediction"
    assert opened.vae.config["scaling_factor"] == VAE["scaling_factor"]


def test_the_file_is_in_pytorchs_naming_and_in_the_precision_of_the_run(
    random_sdxl: Path, tmp_path: Path
) -> None:
    unet = model.load_unet(random_sdxl, ms.float32)
    weights = {f"unet.{n}": p.asnumpy() for n, p in unet.parameters_and_names()}
    exports.write_pipeline(tmp_path / "half", random_sdxl, spec(precision="fp16"), weights)
    path = tmp_path / "half" / "unet" / exports.UNET_FILE
    arrays = load_file(path)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    leaves = {name.rpartition(".")[2] for name in arrays}
    assert leaves == {"weight", "bias"}
    assert "down_blocks.0.resnets.0.norm1.weight" in arrays
    assert "mid_block.attentions.0.transformer_blocks.0.norm3.bias" in arrays
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    assert header["__metadata__"] == {"format": "pt"}
