"""The compiled step and LoRA on small networks: against numpy, on the real framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from mindspore import nn, ops  # noqa: E402

from jobs import lora, specs, train  # noqa: E402
from jobs.dropout import Dropout, new_key  # noqa: E402
from jobs.errors import BadSpec, Diverged  # noqa: E402
from jobs.step import Outcome, Scalars, TrainStep  # noqa: E402
from jobs.update import Options  # noqa: E402


@pytest.fixture(autouse=True)
def graph_mode(on_cpu: None) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


class Line(nn.Cell):  # type: ignore[misc]
    """Mean of (w * x - target)^2, text * x for the text's part; takes the inputs of a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = ms.Parameter(ms.Tensor(START), name="w")
        self.u = ms.Parameter(ms.Tensor(TEXT_START), name="u")

    def construct(
        self, x: Any, t: Any, ids: Any, target: Any, weight: Any, keep: Any, a: Any, b: Any
    ) -> Any:
        return ops.mean(ops.square((self.w + self.u) * x - target))


START = np.array([0.5, -1.0, 2.0], np.float32)
TEXT_START = np.array([0.25, 0.5, -0.25], np.float32)
X = np.array([[1.0, 2.0, 3.0], [0.5, -2.0, 1.0], [2.0, 0.1, -1.0], [1.0, 1.0, 1.0]], np.float32)
TARGET = np.array([1.0, 1.0, -40.0], np.float32)
LR, TEXT_LR, DECAY, CLIP = 0.1, 0.03, 0.01, 1.0
BETA1, BETA2, EPSILON = 0.8, 0.95, 1e-6


def batch(x: np.ndarray) -> tuple[Any, ...]:
    nothing = ms.Tensor(np.zeros(1, np.float32))
    target = ms.Tensor(np.broadcast_to(TARGET, x.shape).copy())
    return (ms.Tensor(x), nothing, nothing, target, *[nothing] * 4)


def call(step: TrainStep, number: int, x: np.ndarray = X, **more: Any) -> Outcome:
    """Do one step with rows of x, cut into the step's parts."""
    parts = [batch(part) for part in np.split(x, step.accumulate)]
    rates = {"lr": LR / number, "text_lr": TEXT_LR / number, "decay": average_decay(number)}
    return step(parts, Scalars(number=number, **rates, **more))


def average_decay(number: int) -> float:
    return 0.5 + 0.01 * number


def build(*, text: bool = False, **given: Any) -> tuple[Line, TrainStep]:
    net = Line()
    known = {"workers": 1, "weight_decay": DECAY, "max_grad_norm": CLIP, "scaled": False}
    known |= {"beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON}
    trained = {"text.u": net.u} if text else {}
    return net, TrainStep(net, {"w": net.w}, Options(**(known | given)), trained)


class AdamW:
    """Clipped AdamW in float64, written from the paper (arXiv 1711.05101, algorithm 2)."""

    def __init__(
        self,
        *,
        text: bool,
        betas: tuple[float, float] = (BETA1, BETA2),
        epsilon: float = EPSILON,
        x: np.ndarray = X,
    ) -> None:
        self.betas, self.epsilon, self.x = betas, epsilon, x
        self.w = [START.astype(np.float64), TEXT_START.astype(np.float64)]
        self.average = self.w[0].copy()
        self.m, self.v = np.zeros((2, 3)), np.zeros((2, 3))
        self.text = text

    def step(self, t: int) -> tuple[float, float]:
        (beta1, beta2), x = self.betas, self.x
        residual = (self.w[0] + self.w[1]) * x - TARGET
        g = (2 * residual * x).sum(0) / x.size
        count = 1 + self.text
        norm = float(np.linalg.norm(np.tile(g, count)))
        g = g * min(1.0, CLIP / (norm + 1e-6))
        for which in range(count):
            m = self.m[which] = beta1 * self.m[which] + (1 - beta1) * g
            v = self.v[which] = beta2 * self.v[which] + (1 - beta2) * g * g
            update = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + self.epsilon)
            rate = (LR, TEXT_LR)[which] / t
            self.w[which] = self.w[which] - rate * (update + DECAY * self.w[which])
        decay = average_decay(t)
        self.average = decay * self.average + (1 - decay) * self.w[0]
        return float(np.mean(residual**2)), norm


STEPS = range(1, 21)


@pytest.mark.parametrize(
    "given",
    [{}, {"scaled": True}, {"text": True}, {"accumulate": 2}, {"average": True},
     {"accumulate": 4, "scaled": True, "text": True, "average": True}],
    ids=str,
)  # fmt: skip
def test_step_is_clipped_adamw_with_bias_correction(given: dict[str, Any]) -> None:
    net, step = build(**given)
    reference = AdamW(text=bool(given.get("text")))
    expected = [reference.step(number) for number in STEPS]
    found = [call(step, number) for number in STEPS]
    assert np.allclose([(f.loss, f.grad_norm) for f in found], expected, rtol=1e-5)
    for parameter, weight in ((net.w, reference.w[0]), (net.u, reference.w[1])):
        assert np.allclose(parameter.asnumpy(), weight, rtol=1e-5, atol=1e-5)
    state = step.state()
    assert np.allclose(state["adam_v.w"].asnumpy(), reference.v[0], rtol=1e-5)
    assert ("ema.w" in state) == bool(given.get("average"))
    if given.get("average"):
        assert np.allclose(step.weights()["w"], reference.average, rtol=1e-5, atol=1e-6)
        assert not np.allclose(reference.average, reference.w[0], rtol=1e-2)
    else:
        assert np.array_equal(step.weights()["w"], net.w.asnumpy())


@pytest.mark.parametrize("scaled", [False, True])
def test_the_bounds_of_the_spec_are_within_fp32(scaled: bool) -> None:
    x = X.copy()
    x[:, 1] = 0.0  # a weight without a gradient
    betas = (specs.NEAR_1, specs.NEAR_1)
    net, step = build(scaled=scaled, beta1=betas[0], beta2=betas[1], epsilon=1e-16)
    reference = AdamW(text=False, betas=betas, epsilon=1e-16, x=x)
    for number in (1, 2, 3):
        reference.step(number)
        call(step, number, x=x)
    assert np.allclose(net.w.asnumpy(), reference.w[0], rtol=1e-2)
    assert not np.allclose(net.w.asnumpy(), START, rtol=0.05)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_overflow_is_left_out_and_halves_the_scale(accumulate: int) -> None:
    net, step = build(scaled=True, accumulate=accumulate)
    call(step, 1)
    before, scale = net.w.asnumpy().copy(), step.scale()  # on CPU it is the memory itself
    huge = X.copy()
    huge[1, 0] = 1e30
    call(step, 2, x=huge)
    assert np.array_equal(net.w.asnumpy(), before)
    assert step.scale() == scale / 2
    assert float(step.update.good.asnumpy()) == 0
    assert np.isfinite([p.asnumpy().sum() for p in step.state().values()]).all()
    call(step, 3)  # the sums of the step before must be gone
    assert not np.array_equal(net.w.asnumpy(), before)
    assert np.isfinite(net.w.asnumpy()).all()


def test_every_loss_scale_down_to_1_is_tried() -> None:
    """The run ends with the step that overflows at 1, and not one before."""
    _, step = build(scaled=True)
    spec = specs.TrainSpec(precision="fp16")
    step.update.scale.set_data(ms.Tensor(4.0, ms.float32))
    huge = np.full_like(X, 1e18)  # the squares of the gradient overflow, the loss does not
    scales = []
    for number in (1, 2):
        outcome = call(step, number, x=huge)
        assert np.isfinite(outcome.loss)
        assert not np.isfinite(outcome.grad_norm)
        scales.append(outcome.scale)
        train.check_finite(spec, number, outcome)
    outcome = call(step, 3, x=huge)
    assert [*scales, outcome.scale] == [4.0, 2.0, 1.0]
    with pytest.raises(Diverged, match=r"step 3: the gradient norm is inf"):
        train.check_finite(spec, 3, outcome)
    good = call(step, 4)
    assert (good.scale, step.scale()) == (1.0, 1.0)
    train.check_finite(spec, 4, good)


def test_without_a_scale_a_step_that_is_not_finite_ends_the_run() -> None:
    spec = specs.TrainSpec(precision="fp32")
    for loss, norm in ((1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(Diverged, match=r"step 7: the (loss is nan|gradient norm is inf)"):
            train.check_finite(spec, 7, Outcome(loss, norm, 0, 0, 1.0))
    with pytest.raises(Diverged, match="loss is inf"):
        train.check_finite(spec, 7, Outcome(np.inf, np.inf, 0, 0, 2.0**15))


def test_a_step_left_out_does_not_count_for_the_bias_correction() -> None:
    net, step = build(scaled=True)
    reference = AdamW(text=False)
    call(step, 1, x=np.full_like(X, 1e30))
    for count in (1, 2):
        reference.step(count)
        rates = {"lr": LR / count, "text_lr": 0.0, "decay": 0.5}
        step([batch(X)], Scalars(number=count + 1, **rates))
    assert np.allclose(net.w.asnumpy(), reference.w[0], rtol=1e-5, atol=1e-5)


def test_a_request_to_stop_and_the_end_of_time_come_back() -> None:
    _, step = build()
    assert (call(step, 1).stops, call(step, 2).late) == (0, 0)
    asked = call(step, 3, stop=True)
    assert (asked.stops, asked.late) == (1, 0)
    over = call(step, 4, late=True)
    assert (over.stops, over.late) == (0, 1)


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


def shape(**given: Any) -> lora.Shape:
    return lora.Shape(**({"rank": RANK, "alpha": ALPHA, "seed": 1} | given))


def injected() -> tuple[Two, dict[str, Any]]:
    net = Two()
    return net, lora.inject(net, "unet", ("to_q", "to_out.0"), shape())


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
    assert lora.merge({"unet": base}, lora.read(tmp_path / "lora.safetensors"), 1.0).keys() == {
        "unet.attn1.to_q",
        "unet.attn1.to_out.0",
    }
    assert np.allclose(base(ms.Tensor(INPUT)).asnumpy(), expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(plain, expected, rtol=1e-2)
    half = Two()
    lora.merge({"unet": half}, lora.read(tmp_path / "lora.safetensors"), 0.5)
    weights = [net.attn1.to_q.weight.asnumpy() for net in (Two(), half, base)]
    assert np.allclose(weights[1], (weights[0] + weights[2]) / 2, atol=1e-5)


class Convolved(nn.Cell):  # type: ignore[misc]
    """A convolution of 3 x 3 that halves the sides, and one of 1 x 1, as a UNet has them."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.conv = nn.Conv2d(
            3, 5, 3, stride=2, padding=1, pad_mode="pad", has_bias=True, dtype=ms.float32
        )
        self.conv_shortcut = nn.Conv2d(5, 4, 1, has_bias=True, dtype=ms.float32)
        for parameter in self.get_parameters():
            parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))

    def construct(self, x: Any) -> Any:
        return self.conv_shortcut(self.conv(x))


IMAGE = np.random.default_rng(6).standard_normal((2, 3, 8, 6)).astype(np.float32)


def test_a_lora_of_convolutions_computes_what_the_merged_one_does() -> None:
    plain = Convolved()(ms.Tensor(IMAGE)).asnumpy()
    net = Convolved()
    trained = lora.inject(net, "unet", ("conv", "conv_shortcut"), shape())
    assert {name: p.shape for name, p in trained.items()} == {
        "unet.conv.lora_A.weight": (RANK, 3, 3, 3),
        "unet.conv.lora_B.weight": (5, RANK, 1, 1),
        "unet.conv_shortcut.lora_A.weight": (RANK, 5, 1, 1),
        "unet.conv_shortcut.lora_B.weight": (4, RANK, 1, 1),
    }
    assert np.array_equal(net(ms.Tensor(IMAGE)).asnumpy(), plain)
    rng = np.random.default_rng(7)
    for parameter in trained.values():
        parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    expected = net(ms.Tensor(IMAGE)).asnumpy()
    arrays = {name: p.asnumpy() for name, p in trained.items()}
    base = Convolved()
    lora.merge({"unet": base}, lora.diffusers_weights(arrays, ALPHA / RANK), 1.0)
    assert np.allclose(base(ms.Tensor(IMAGE)).asnumpy(), expected, rtol=1e-4, atol=1e-3)
    assert not np.allclose(plain, expected, rtol=1e-2)


def test_the_dropout_of_a_convolution_goes_by_its_key() -> None:
    """It leaves out single channels of single pixels of what the update sees."""
    key = new_key(len(IMAGE))
    net = Convolved()
    trained = lora.inject(net, "unet", ("conv",), shape(dropout=0.5, key=key))
    rng = np.random.default_rng(7)
    for parameter in trained.values():
        parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    key.set_data(ms.Tensor(np.full((len(IMAGE), 2), 3, np.float32)))
    found = net.conv(ms.Tensor(IMAGE)).asnumpy()
    ones = ms.Tensor(np.ones((2, 8, 6, 3), np.float32))
    mask = Dropout(0.5, key, "unet.conv", 3)(ones).asnumpy().transpose(0, 3, 1, 2)
    plain = Convolved()
    adapted = lora.inject(plain, "unet", ("conv",), shape())
    for name, parameter in adapted.items():
        parameter.set_data(trained[name])
    update = plain.conv(ms.Tensor(IMAGE * mask)) - plain.conv.base(ms.Tensor(IMAGE * mask))
    expected = plain.conv.base(ms.Tensor(IMAGE)) + update
    assert np.allclose(found, expected.asnumpy(), rtol=1e-4, atol=1e-4)


def test_a_lora_of_another_model_is_refused() -> None:
    weights = {"unet.attn9.to_q.lora_A.weight": np.zeros((2, 6), np.float32)}
    weights["unet.attn9.to_q.lora_B.weight"] = np.zeros((4, 2), np.float32)
    with pytest.raises(BadSpec, match=r"unet\.attn9\.to_q"):
        lora.merge({"unet": Two()}, weights, 1.0)


def test_an_injected_dropout_goes_by_its_key() -> None:
    """What the update sees is x times the module's mask; the frozen path sees all of x."""
    key = new_key(len(INPUT))
    net = Two()
    trained = lora.inject(net, "unet", ("to_q", "to_out.0"), shape(dropout=0.5, key=key))
    rng = np.random.default_rng(7)
    arrays = {}
    for name, parameter in trained.items():
        arrays[name] = rng.standard_normal(parameter.shape).astype(np.float32)
        parameter.set_data(ms.Tensor(arrays[name]))
    found = []
    for number in (1, 2, 1):
        key.set_data(ms.Tensor(np.full((len(INPUT), 2), number, np.float32)))
        found.append(net(ms.Tensor(INPUT)).asnumpy().copy())
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1], atol=1e-2)

    def dense(cell: Any, x: np.ndarray) -> np.ndarray:
        return x @ cell.weight.asnumpy().T + cell.bias.asnumpy()

    def adapted(name: str, cell: Any, x: np.ndarray) -> np.ndarray:
        full = f"unet.attn1.{name}"
        mask = Dropout(0.5, key, full, x.shape[-1])(ms.Tensor(np.ones_like(x))).asnumpy()
        down, up = (arrays[f"{full}.lora_{side}.weight"] for side in "AB")
        return dense(cell.base, x) + ALPHA / RANK * ((x * mask) @ down.T @ up.T)

    inner = net.attn1
    expected = adapted("to_q", inner.to_q, INPUT)
    expected = dense(inner.proj, adapted("to_out.0", inner.to_out[0], expected))
    assert np.allclose(found[2], expected, rtol=1e-4, atol=1e-4)


def test_a_target_that_matches_nothing_is_refused() -> None:
    with pytest.raises(BadSpec, match=r"ends in 'to_z'; there are proj, to_q"):
        lora.inject(Two(), "unet", ("to_q", "to_z"), shape())


def test_targets_are_the_ends_of_names_and_no_less() -> None:
    trained = lora.inject(Two(), "unet", ("proj",), shape())
    assert list(trained) == [f"unet.attn1.proj.lora_{side}.weight" for side in "AB"]
