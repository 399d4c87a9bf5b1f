"""The training loss on a small network, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from mindspore import nn, ops  # noqa: E402

from jobs.losses import CaptionLoss, NoiseLoss  # noqa: E402

B = 3


class Net(nn.Cell):  # type: ignore[misc]
    """Takes what SDXL's UNet takes, and depends on all of it."""

    def construct(self, x: Any, t: Any, embeds: Any, added_cond_kwargs: Any = None) -> Any:
        more = ops.mean(embeds, (1, 2)) + ops.mean(added_cond_kwargs["text_embeds"], 1)
        more = more + ops.mean(added_cond_kwargs["time_ids"], 1) + t.astype(ms.float32)
        return (x * more.reshape(-1, 1, 1, 1),)


class Encoder(nn.Cell):  # type: ignore[misc]
    """Ids to what CLIP returns: pooled, last, all hidden states."""

    def construct(self, ids: Any, output_hidden_states: bool = False) -> Any:
        hidden = ops.stack([ids, 2 * ids], -1).astype(ms.float32)
        return hidden[:, 0], hidden, (0 * hidden, hidden, 7 * hidden)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"noisy": (B, 4, 5, 6), "timesteps": (B,), "time_ids": (B, 6),
              "target": (B, 4, 5, 6), "weight": (B,)}  # fmt: skip
    found = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}
    return found | {"keep": np.array([1, 0, 1], np.float32)}


def expected(given: dict[str, np.ndarray], embeds: np.ndarray, pooled: np.ndarray) -> float:
    each = []
    for i in range(B):
        caption = (embeds[i].mean() + pooled[i].mean()) * given["keep"][i]
        factor = caption + given["time_ids"][i].mean() + given["timesteps"][i]
        error = np.mean((given["noisy"][i] * factor - given["target"][i]) ** 2)
        each.append(given["weight"][i] * error)
    return float(np.mean(each))


def test_each_samples_error_has_its_weight_and_a_dropped_caption_is_zeros() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(1)
    embeds, pooled = (rng.standard_normal(s).astype(np.float32) for s in ((B, 77, 8), (B, 8)))
    given = arrays()
    inputs = [ms.Tensor(array) for array in (*given.values(), embeds, pooled)]
    found = float(NoiseLoss(Net(), ms.float32)(*inputs).asnumpy())
    assert found == pytest.approx(expected(given, embeds, pooled), rel=1e-4)


def test_token_ids_become_the_last_but_one_layers_of_both_encoders() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 9, (2, B, 77)).astype(np.int32)
    given = arrays()
    inputs = [ms.Tensor(array) for array in (*given.values(), *ids)]
    loss = CaptionLoss(Net(), (Encoder(), Encoder()), ms.float32)
    hidden = np.stack([ids, 2 * ids], -1).astype(np.float32)  # [2, B, 77, 2]
    embeds = np.concatenate([hidden[0], hidden[1]], -1)
    found = float(loss(*inputs).asnumpy())
    assert found == pytest.approx(expected(given, embeds, hidden[1][:, 0]), rel=1e-4)
