"""Guidance: what the compiled step makes of the two predictions of a picture, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from mindspore import nn  # noqa: E402

from jobs.cells import Denoise  # noqa: E402
from jobs.sampling import Painter  # noqa: E402


class Affine(nn.Cell):  # type: ignore[misc]
    """A UNet whose prediction is a plane of x by embedding, shifted by what else it is told."""

    def construct(
        self, x: Any, timestep: Any, embeds: Any, added_cond_kwargs: Any = None
    ) -> tuple[Any]:
        told = added_cond_kwargs["text_embeds"] + added_cond_kwargs["time_ids"] + timestep
        return (x * embeds[:, :1, :1, None] + told[:, :1, None, None],)


def test_a_picture_is_guided_by_its_own_numbers_from_its_own_negative(on_cpu: None) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(0)
    x, embeds, pooled, ids = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((3, 4, 5, 6), (6, 7, 8), (6, 2), (6, 2))
    )
    guidance = np.array([1, 3, 7.5], np.float32).reshape(3, 1, 1, 1)
    rescale = np.array([0.7, 0, 0.7], np.float32).reshape(3, 1, 1, 1)
    given = [x, np.float32(9), embeds, pooled, ids, guidance, rescale]
    found = Denoise(Affine(), ms.float32)(*map(ms.Tensor, given)).asnumpy()

    said = np.concatenate([x, x]) * embeds[:, :1, :1, None]
    said += (pooled + ids + 9)[:, :1, None, None]
    without, told = said[:3], said[3:]
    guided = without + guidance * (told - without)
    spread = told.std((1, 2, 3), keepdims=True) / guided.std((1, 2, 3), keepdims=True)
    expected = rescale * guided * spread + (1 - rescale) * guided
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found[2] - guided[2]).max() > 0.1, "rescaling does something"
    assert np.abs(found[0] - told[0]).max() < 1e-4, "guidance 1 is the prediction itself"


def test_the_painter_hands_latents_and_time_on_as_they_are() -> None:
    given: list[Any] = []

    class Recorder:
        def denoise(self, x: Any, moment: Any, *conditions: Any) -> Any:
            given.extend((x.asnumpy(), moment.asnumpy(), conditions))
            return x

    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    Painter._predict(Recorder(), x, 925.0, ("the conditions",))  # type: ignore[arg-type]
    assert np.array_equal(given[0], x)
    assert given[1:] == [925.0, ("the conditions",)]
    assert given[1].dtype == np.float32
