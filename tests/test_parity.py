"""Our LoRA file in mindone's own hands: loaded by its pipeline it does what our merge does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from safetensors.numpy import save_file  # noqa: E402

from jobs import layout, lora, model  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.tiny import pipeline  # noqa: E402

pytestmark = pytest.mark.parity
ALPHA, RANK = 8.0, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ms.set_device("CPU")
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    with eager():
        pipeline.write_folder(folder)
    return folder


def predict(unet: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    noisy, embeds, pooled = (
        ms.Tensor(rng.standard_normal(shape).astype(np.float32))
        for shape in ((1, 4, 16, 16), (1, 77, 128), (1, 64))
    )
    ids = ms.Tensor(np.asarray([[128, 128, 0, 0, 128, 128]], np.float32))
    conditions = {"text_embeds": pooled, "time_ids": ids}
    with eager():
        out = unet(noisy, ms.Tensor(500, ms.int32), embeds, added_cond_kwargs=conditions)[0]
        return np.asarray(out.asnumpy())


def test_mindones_pipeline_reads_our_lora(folder: Path, tmp_path: Path) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    trainee = model.load_unet(folder, ms.float32)
    plain = predict(trainee)
    trained = lora.inject(trainee, "unet", lora.TARGETS, rank=RANK, alpha=ALPHA, seed=0)
    rng = np.random.default_rng(1)
    for parameter in trained.values():
        value = 0.3 * rng.standard_normal(parameter.shape)
        parameter.set_data(ms.Tensor(value.astype(np.float32)))
    injected = predict(trainee)
    arrays = {name: p.asnumpy() for name, p in trained.items()}
    save_file(
        lora.diffusers_weights(arrays, ALPHA / RANK), tmp_path / layout.LORA_FILE, {"format": "pt"}
    )
    merged = model.load_unet(folder, ms.float32)
    lora.merge({"unet": merged}, lora.read(tmp_path / layout.LORA_FILE), 1.0)
    with eager():
        pipe = StableDiffusionXLPipeline.from_pretrained(str(folder), mindspore_dtype=ms.float32)
        pipe.load_lora_weights(str(tmp_path), weight_name=layout.LORA_FILE)
    loaded = predict(pipe.unet)
    assert np.abs(injected - plain).max() > 0.05, "the LoRA must do something"
    difference = np.abs(predict(merged) - injected).max()
    assert difference < 2e-3, "summation order only: the LoRA moves the prediction by 0.05 and more"
    assert np.abs(loaded - injected).max() < 2e-3
