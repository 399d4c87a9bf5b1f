"""The compiled step and LoRA on small networks: against numpy, on the real framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from mindspore import nn, ops  # noqa: E402

from jobs import lora  # noqa: E402
from jobs.errors import BadSpec  # noqa: E402
from jobs.step import TrainStep  # noqa: E402


@pytest.fixture(autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


class Line(nn.Cell):  # type: ignore[misc]
    """Mean of (w * x - target)^2; takes the inputs of a training loss."""

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.w = ms.Parameter(ms.Tensor(start), name="w")

    def construct(self, x: Any, t: Any, ids: Any, target: Any, a: Any, b: Any) -> Any:
        return ops.mean(ops.square(self.w * x - target))


START = np.array([0.5, -1.0, 2.0], np.float32)
X = np.array([1.0, 2.0, 3.0], np.float32)
TARGET = np.array([1.0, 1.0, -40.0], np.float32)


def call(
    step: TrainStep, number: int, x: np.ndarray = X, stop: float = 0.0
) -> tuple[float, float, float]:
    nothing = ms.Tensor(np.zeros(1, np.float32))
    scalars = (ms.Tensor(value, ms.float32) for value in (LR, float(number), stop))
    found = step(ms.Tensor(x), nothing, nothing, ms.Tensor(TARGET), nothing, nothing, *scalars)
    loss, norm, stops = (float(value.asnumpy()) for value in found)
    return loss, norm, stops


LR, DECAY, CLIP = 0.1, 0.01, 1.0


def build(*, scaled: bool = False) -> tuple[Line, TrainStep]:
    net = Line(START)
    options = {"workers": 1, "weight_decay": DECAY, "max_grad_norm": CLIP}
    return net, TrainStep(net, {"w": net.w}, scaled=scaled, **options)


def adamw(steps: int) -> tuple[np.ndarray, list[float], list[float]]:
    """AdamW with clipping in float64, written from the paper (arXiv 1711.05101, algorithm 2)."""
    w = START.astype(np.float64)
    m, v = np.zeros(3), np.zeros(3)
    losses, norms = [], []
    for t in range(1, steps + 1):
        residual = w * X - TARGET
        losses.append(float(np.mean(residual**2)))
        g = 2 * residual * X / 3
        norms.append(float(np.linalg.norm(g)))
        g = g * min(1.0, CLIP / (norms[-1] + 1e-6))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - LR * (update + DECAY * w)
    return w, losses, norms


@pytest.mark.parametrize("scaled", [False, True])
def test_step_is_clipped_adamw_with_bias_correction(scaled: bool) -> None:
    net, step = build(scaled=scaled)
    expected, losses, norms = adamw(20)
    found = [call(step, number) for number in range(1, 21)]
    assert np.allclose([f[0] for f in found], losses, rtol=1e-5)
    assert np.allclose([f[1] for f in found], norms, rtol=1e-5)
    assert np.allclose(net.w.asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_an_overflow_is_left_out_and_halves_the_scale() -> None:
    net, step = build(scaled=True)
    call(step, 1)
    before, scale = net.w.asnumpy(), float(step.scale.asnumpy())
    huge = np.array([1e30, 1.0, 1.0], np.float32)
    call(step, 2, x=huge)
    assert np.array_equal(net.w.asnumpy(), before)
    assert float(step.scale.asnumpy()) == scale / 2
    assert float(step.good.asnumpy()) == 0
    assert np.isfinite([p.asnumpy().sum() for p in step.state().values()]).all()


def test_a_request_to_stop_comes_back() -> None:
    _, step = build()
    assert call(step, 1)[2] == 0
    assert call(step, 2, stop=1.0)[2] == 1


class Two(nn.Cell):  # type: ignore[misc]
    """A module tree with the names LoRA looks for."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        inner = nn.Cell()
        inner.to_q = nn.Dense(6, 4)
        inner.to_out = nn.CellList([nn.Dense(4, 6)])
        inner.proj = nn.Dense(6, 6)
        self.attn1 = inner
        for parameter in self.get_parameters():
            parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))

    def construct(self, x: Any) -> Any:
        return self.attn1.proj(self.attn1.to_out[0](self.attn1.to_q(x)))


INPUT = np.random.default_rng(5).standard_normal((3, 6)).astype(np.float32)
ALPHA, RANK = 8.0, 2


def injected() -> tuple[Two, dict[str, Any]]:
    net = Two()
    return net, lora.inject(net, "unet", lora.TARGETS, rank=RANK, alpha=ALPHA, seed=1)


def test_lora_is_named_frozen_and_starts_as_the_base_model() -> None:
    plain = Two()(ms.Tensor(INPUT)).asnumpy()
    net, trained = injected()
    assert list(trained) == [
        f"unet.attn1.{module}.lora_{side}.weight"
        for module in ("to_out.0", "to_q")
        for side in "AB"
    ]
    assert {id(p) for p in net.trainable_params()} == {id(p) for p in trained.values()}
    assert np.array_equal(net(ms.Tensor(INPUT)).asnumpy(), plain)
    again = injected()[1]
    assert all(np.array_equal(p.asnumpy(), again[name].asnumpy()) for name, p in trained.items())


def test_a_merged_lora_computes_what_the_injected_one_does(tmp_path: Path) -> None:
    """With alpha unequal to rank, through the file."""
    from safetensors.numpy import save_file

    net, trained = injected()
    rng = np.random.default_rng(7)
    for parameter in trained.values():
        parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    expected = net(ms.Tensor(INPUT)).asnumpy()
    arrays = {name: p.asnumpy() for name, p in trained.items()}
    save_file(lora.diffusers_weights(arrays, ALPHA / RANK), tmp_path / "lora.safetensors")

    base = Two()
    plain = base(ms.Tensor(INPUT)).asnumpy()  # compiled before the merge, which must reach it
    assert lora.merge({"unet": base}, lora.read(tmp_path / "lora.safetensors"), 1.0) == 2
    assert np.allclose(base(ms.Tensor(INPUT)).asnumpy(), expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(plain, expected, rtol=1e-2)
    half = Two()
    lora.merge({"unet": half}, lora.read(tmp_path / "lora.safetensors"), 0.5)
    weights = [net.attn1.to_q.weight.asnumpy() for net in (Two(), half, base)]
    assert np.allclose(weights[1], (weights[0] + weights[2]) / 2, atol=1e-5)


def test_a_lora_of_another_model_is_refused() -> None:
    weights = {"unet.attn9.to_q.lora_A.weight": np.zeros((2, 6), np.float32)}
    weights["unet.attn9.to_q.lora_B.weight"] = np.zeros((4, 2), np.float32)
    with pytest.raises(BadSpec, match=r"unet\.attn9\.to_q"):
        lora.merge({"unet": Two()}, weights, 1.0)
