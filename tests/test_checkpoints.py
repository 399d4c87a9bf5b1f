"""A checkpoint on disk: everything comes back, and a changed spec is refused by its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from mindspore import nn  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from jobs import checkpoints, layout  # noqa: E402
from jobs.errors import BadSpec  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402
from jobs.step import TrainStep  # noqa: E402
from jobs.update import Options  # noqa: E402

NAME = "unet.a.to_q.lora_B.weight"


def a_step(start: float, *, text: bool = False, average: bool = False) -> TrainStep:
    def parameter(name: str) -> Any:
        return ms.Parameter(ms.Tensor(np.full((3, 2), start, np.float32)), name=name)

    options = Options(workers=1, weight_decay=0.1, max_grad_norm=1, scaled=True, average=average)
    more = {"text_encoder.b.lora_B.weight": parameter("b")} if text else {}
    return TrainStep(nn.Identity(), {NAME: parameter("a")}, options, more)


def spec(**given: Any) -> TrainSpec:
    return TrainSpec(**({"lora_rank": 2, "lora_alpha": 6.0, "steps": 100} | given))


@pytest.mark.parametrize("given", [{"text": True}, {"average": True}], ids=str)
def test_every_parameter_comes_back(tmp_path: Path, given: dict[str, bool]) -> None:
    rng = np.random.default_rng(0)
    old = a_step(0.0, **given)
    for parameter in old.state().values():
        value = rng.standard_normal(parameter.shape)
        parameter.set_data(ms.Tensor(np.asarray(value, np.float32)))
    checkpoints.save(tmp_path, spec(), old, 70)
    new = a_step(9.0, **given)
    assert checkpoints.restore(tmp_path, spec(), new) == 70
    found, expected = (
        {name: p.asnumpy() for name, p in step.state().items()} for step in (new, old)
    )
    assert found.keys() == expected.keys()
    assert len(found) == 2 + (6 if given.get("text") else 4)
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name
    kept = "ema." + NAME if given.get("average") else NAME
    lora = load_file(tmp_path / layout.LORA_FILE)
    assert np.allclose(lora[NAME], 3 * expected[kept])


def test_another_spec_is_refused_by_its_keys(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, spec(), a_step(0.0), 70)
    changed = spec(learning_rate=2e-4, lora_targets=("to_q",), seed=1)
    with pytest.raises(BadSpec) as caught:
        checkpoints.restore(tmp_path, changed, a_step(0.0))
    text = str(caught.value)
    assert "learning_rate was 0.0001, not 0.0002" in text
    assert 'lora_targets was ["to_q", "to_k"' in text
    assert "seed was 0, not 1" in text
    assert text.count(" was ") == 4, "three keys, and what was made with other values"


def test_what_changes_no_number_may_change(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, spec(), a_step(0.0), 70)
    free = {"save_every": 9, "log_every": 1, "max_minutes": 5.0, "model": "x", "steps": 400}
    assert checkpoints.restore(tmp_path, spec(**free), a_step(0.0)) == 70
    checkpoints.save(tmp_path, spec(lr_schedule="cosine"), a_step(0.0), 70)
    with pytest.raises(BadSpec, match="steps was 100, not 400"):
        checkpoints.restore(tmp_path, spec(lr_schedule="cosine", steps=400), a_step(0.0))


def test_a_checkpoint_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    given = spec(learning_rate=2e-4)
    checkpoints.save(tmp_path, given, a_step(0.0), 70)
    path = tmp_path / checkpoints.LOOP
    loop = json.loads(path.read_text())
    del loop["spec"]["adam_beta1"]  # as if the key were newer
    path.write_text(json.dumps(loop))
    assert checkpoints.restore(tmp_path, given, a_step(0.0)) == 70
    with pytest.raises(BadSpec, match=r"adam_beta1 was 0\.9, not 0\.8"):
        checkpoints.restore(tmp_path, spec(learning_rate=2e-4, adam_beta1=0.8), a_step(0.0))
    path.write_text(json.dumps({"step": 70, "seed": 0, "method": "lora", "trained": 1}))
    assert checkpoints.restore(tmp_path, given, a_step(0.0)) == 70
    with pytest.raises(BadSpec, match='method was "lora", not "lora-te"'):
        checkpoints.restore(tmp_path, spec(method="lora-te"), a_step(0.0))


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, spec(), a_step(0.0), 70)
    with pytest.raises(BadSpec, match="of another model"):
        checkpoints.restore(tmp_path, spec(), a_step(0.0, text=True))
