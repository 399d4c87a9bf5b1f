"""Half precision of each method: trained masters stay fp32, and the numbers are those of fp32."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from jobs import methods, model, train  # noqa: E402
from jobs.environment import Worker  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402
from jobs.update import FIRST_SCALE  # noqa: E402


def batch(method: str) -> tuple[Any, ...]:
    """Return what the loss takes of one sample of 64 px."""
    rng = np.random.default_rng(0)
    shape = (1, 4, 8, 8)
    ids = rng.integers(0, 30, (1, 77)).astype(np.int32)
    texts = (
        (ids, ids)
        if method == "lora-te"
        else (
            rng.standard_normal((1, 77, 128), np.float32),
            rng.standard_normal((1, 64), np.float32),
        )
    )
    rows = (
        rng.standard_normal(shape, np.float32), np.asarray([400], np.int32),
        np.asarray([[64, 64, 0, 0, 64, 64]], np.float32),
        rng.standard_normal(shape, np.float32), np.ones(1, np.float32), np.ones(1, np.float32),
        *texts,
    )  # fmt: skip
    return tuple(ms.Tensor(row) for row in rows)


def trained(folder: Path, method: str, precision: str) -> tuple[list[float], list[float], Any]:
    """Return losses and gradient norms of two steps, and the step."""
    spec = TrainSpec.model_validate(
        {"method": method, "precision": precision, "resolution": 64, "learning_rate": 1e-3}
    )
    step, _ = methods.build(folder, model.DTYPES[precision], spec, Worker(0, 1))
    inputs = batch(method)
    found = [step([inputs], train.scalars(spec, done)) for done in range(2)]
    return [one.loss for one in found], [one.grad_norm for one in found], step


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "lora-te"])
def test_fp16_trains_fp32_masters_to_the_numbers_of_fp32(random_sdxl: Path, method: str) -> None:
    losses, norms, step = trained(random_sdxl, method, "fp16")
    expected, expected_norms, _ = trained(random_sdxl, method, "fp32")
    assert {p.dtype for group in step.update.groups() for p in group.weights} == {ms.float32}
    frozen = {p.dtype for p in step.whole.loss.get_parameters() if not p.requires_grad}
    assert frozen == ({ms.float16} if method == "lora-te" else set())
    assert step.scale() == FIRST_SCALE, "no step was left out"
    assert losses[1] < losses[0]
    assert np.allclose(losses, expected, rtol=5e-3)
    assert np.allclose(norms, expected_norms, rtol=5e-2)


class Unet:
    """What `load_master` does with a UNet."""

    def __init__(self) -> None:
        self.parameter = SimpleNamespace(requires_grad=False)
        self.computes_in: list[Any] = []

    def to_float(self, kind: Any) -> None:
        self.computes_in.append(kind)

    def get_parameters(self) -> list[Any]:
        return [self.parameter]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_whole_unet_is_kept_in_fp32_and_computes_in_its_precision(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(model, "load_unet", lambda _folder, kind, **_: kept.append(kind) or Unet())
    spec = TrainSpec.model_validate({"method": "vanilla", "precision": precision})
    unet = methods.load_master(Path(), model.DTYPES[precision], spec)
    assert kept == [ms.float32]
    assert unet.computes_in == ([] if precision == "fp32" else [model.DTYPES[precision]])
    assert unet.parameter.requires_grad


def test_the_vae_computes_in_fp32_whatever_a_run_does(random_sdxl: Path) -> None:
    """In fp16 SDXL's overflows, and pictures are black."""
    vae = model.load_vae(random_sdxl)
    assert {p.dtype for p in vae.get_parameters()} == {ms.float32}
    assert not any(p.requires_grad for p in vae.get_parameters())
