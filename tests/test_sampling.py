"""Our sampling against mindone's own pipeline: same weights, same noise, same latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from jobs import draws, sampling, schedules  # noqa: E402
from jobs.sampling import Painter, Request  # noqa: E402
from jobs.tiny.recipe.pipeline import SDXL_SCHEDULER  # noqa: E402

pytestmark = pytest.mark.parity
STEPS, SIZE = 6, (64, 64)
REQUEST = Request(3, 1, "a red circle", "a blue square", 11, guidance=5.0)


@pytest.fixture(scope="module")
def folder(random_sdxl: Path) -> Path:
    ms.set_context(mode=ms.GRAPH_MODE)
    return random_sdxl


@pytest.fixture(scope="module")
def painter(folder: Path) -> Painter:
    return Painter(folder, ms.float32, width=SIZE[0], height=SIZE[1], batch=1)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from mindone.diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(str(folder), mindspore_dtype=ms.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class OurNoise:
    """A generator that draws what ours adds after each step."""

    def __init__(self, request: Request, shape: tuple[int, ...]) -> None:
        self.request, self.shape, self.step = request, shape, 0

    def standard_normal(self, *_: Any, **__: Any) -> np.ndarray:
        self.step += 1
        return sampling.step_noise(self.request, self.step - 1, self.shape)[None]


def latents_of(pipe: Any, request: Request, shape: tuple[int, ...]) -> np.ndarray:
    noise = draws.picture_noise(request.seed, request.line, request.image, shape)[None]
    out = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative,
        width=SIZE[0],
        height=SIZE[1],
        num_inference_steps=STEPS,
        guidance_scale=request.guidance,
        guidance_rescale=request.rescale,
        latents=ms.Tensor(noise),
        generator=OurNoise(request, shape),
        output_type="latent",
    )[0]
    return np.asarray(out.asnumpy())


@pytest.mark.parametrize("name", sorted(schedules.CLASSES))
def test_each_sampler_gives_the_latents_of_mindones_pipeline(
    painter: Painter, theirs: Any, folder: Path, name: str
) -> None:
    theirs.scheduler = schedules.configured(name, SDXL_SCHEDULER)
    shape = (4, SIZE[1] // 8, SIZE[0] // 8)
    expected = latents_of(theirs, REQUEST, shape)
    found = painter.sample([REQUEST], steps=STEPS, scheduler=name)
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("change", ["rescale", "no negative"])
def test_guidance_is_that_of_mindones_pipeline(painter: Painter, theirs: Any, change: str) -> None:
    from dataclasses import replace

    request = replace(REQUEST, **({"rescale": 0.7} if change == "rescale" else {"negative": None}))
    theirs.scheduler = schedules.configured(None, SDXL_SCHEDULER)
    expected = latents_of(theirs, request, (4, SIZE[1] // 8, SIZE[0] // 8))
    found = painter.sample([request], steps=STEPS)
    plain = painter.sample([REQUEST], steps=STEPS)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found - plain).max() > 0.01, "the setting must do something"
