"""How the UNet attends and what it keeps for the gradient: decided by spec, type and device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from jobs import methods, model, train  # noqa: E402
from jobs.environment import Worker  # noqa: E402
from jobs.errors import BadSpec  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402

pytestmark = pytest.mark.usefixtures("on_cpu")
WORKER = Worker(0, 1)


def chosen(cell: Any, kind: Any) -> set[str]:
    """Return which operator the attentions of a part take for numbers of a type, on an NPU.

    mindone asks the device when it builds them; what stands in for its answer, and for the two
    operators, is set afterwards.
    """
    found: set[str] = set()
    for _, child in cell.cells_and_names():
        if not hasattr(child, "fa_op_available"):
            continue
        child.fa_op_available = True
        child.flash_attention_op = lambda query, *_, **__: found.add("flash") or query
        child.math_attention_op = lambda query, *_, **__: found.add("math") or query
        x = ms.Tensor(np.zeros((1, 1, 16, 64), np.float32)).astype(kind)
        child.scaled_dot_product_attention(x, x, x)
    return found


def test_halves_attend_by_flash_and_fp32_stays_fp32(random_sdxl: Path) -> None:
    unet = model.load_unet(random_sdxl, ms.float16)
    assert chosen(unet, ms.float16) == {"flash"}
    assert chosen(unet, ms.float32) == {"math"}, "mindone itself would compute it in fp16"
    assert chosen(model.load_unet(random_sdxl, ms.float16, flash=False), ms.float16) == {"math"}
    # The VAE overflows in fp16, which is why it is kept in fp32.
    assert chosen(model.load_vae(random_sdxl), ms.float32) == {"math"}


@pytest.mark.parametrize("method", ["lora", "vanilla"])
def test_the_spec_switches_it_off(
    random_sdxl: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = model.load_unet

    def load(*args: Any, flash: bool = True) -> Any:
        asked.append(flash)
        return real(*args, flash=flash)

    monkeypatch.setattr(model, "load_unet", load)
    for wanted in (None, False):
        spec = TrainSpec.model_validate({"method": method, "flash_attention": wanted})
        methods.build(random_sdxl, ms.float32, spec, WORKER)
    assert asked == [True, False]
    on, off = (TrainSpec(flash_attention=wanted) for wanted in (None, False))
    assert methods.constants(random_sdxl, on) != methods.constants(random_sdxl, off), "other graphs"


def test_what_is_told_is_what_the_device_has() -> None:
    assert model.attention(None, ms.float16, "Ascend") == "flash"
    assert model.attention(None, ms.bfloat16, "Ascend") == "flash"
    assert model.attention(None, ms.float32, "Ascend") == "math"
    assert model.attention(False, ms.float16, "Ascend") == "math"
    assert model.attention(None, ms.float16, "CPU") == "math"
    with pytest.raises(BadSpec, match="flash_attention: CPU has none"):
        model.attention(True, ms.float16, "CPU")
    with pytest.raises(BadSpec, match="flash_attention: Ascend has none in Float32"):
        model.attention(True, ms.float32, "Ascend")


def losses(random_sdxl: Path, *, recompute: bool) -> tuple[list[float], int]:
    """Return the losses of three steps, and how many parts compute their activations again."""
    spec = TrainSpec(
        precision="fp32", recompute=recompute, resolution=128, lora_targets=("to_q", "to_v")
    )
    step, _ = methods.build(random_sdxl, ms.float32, spec, WORKER)
    rng = np.random.default_rng(0)
    shape = (1, 4, 16, 16)
    rows = (
        rng.standard_normal(shape, np.float32), np.asarray([400], np.int32),
        np.asarray([[128, 128, 0, 0, 128, 128]], np.float32),
        rng.standard_normal(shape, np.float32), np.ones(1, np.float32), np.ones(1, np.float32),
        rng.standard_normal((1, 77, 128), np.float32), rng.standard_normal((1, 64), np.float32),
    )  # fmt: skip
    batch = tuple(ms.Tensor(row) for row in rows)
    found = [step([batch], train.scalars(spec, done)).loss for done in range(3)]
    cells = step.whole.loss.unet.cells_and_names()
    # What nn.Cell.recompute leaves behind; tests/bench/memory.py shows what it brings.
    return found, sum(getattr(cell, "_recompute_cell", None) is not None for _, cell in cells)


def test_recomputed_activations_give_the_same_losses(random_sdxl: Path) -> None:
    plain, none = losses(random_sdxl, recompute=False)
    again, parts = losses(random_sdxl, recompute=True)
    # Resnets: 1 + 1 down, 2 in the middle, 2 + 2 up; attentions: 1, 1 and 2.
    assert (none, parts) == (0, 12)
    assert len({round(loss, 7) for loss in plain}) == 3, "it learns"
    assert np.allclose(plain, again, rtol=0, atol=1e-6)
