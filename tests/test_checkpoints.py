"""A checkpoint on disk: everything comes back, and a changed spec is refused by its keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from mindspore import nn  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from jobs import checkpoints, commits, layout, specs  # noqa: E402
from jobs.errors import BadData, BadSpec  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402
from jobs.step import TrainStep  # noqa: E402
from jobs.stores import FileStore  # noqa: E402
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
    assert checkpoints.restore(tmp_path, spec(), new) == (70, [])
    found, expected = (
        {name: p.asnumpy() for name, p in step.state().items()} for step in (new, old)
    )
    assert found.keys() == expected.keys()
    assert len(found) == 3 + (6 if given.get("text") else 4)
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
    assert checkpoints.restore(tmp_path, spec(**free), a_step(0.0)) == (70, [])
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
    assert checkpoints.restore(tmp_path, given, a_step(0.0)) == (70, [])
    with pytest.raises(BadSpec, match=r"adam_beta1 was 0\.9, not 0\.8"):
        checkpoints.restore(tmp_path, spec(learning_rate=2e-4, adam_beta1=0.8), a_step(0.0))
    path.write_text(json.dumps({"step": 70, "seed": 0, "method": "lora", "trained": 1}))
    assert checkpoints.restore(tmp_path, given, a_step(0.0)) == (70, [])
    with pytest.raises(BadSpec, match='method was "lora", not "lora-te"'):
        checkpoints.restore(tmp_path, spec(method="lora-te"), a_step(0.0))


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, spec(), a_step(0.0), 70)
    with pytest.raises(BadSpec, match="of another model"):
        checkpoints.restore(tmp_path, spec(), a_step(0.0, text=True))


def test_a_fork_goes_on_with_other_values_and_says_which(tmp_path: Path) -> None:
    before = a_step(0.25)
    checkpoints.save(tmp_path, spec(), before, 70)
    new = a_step(0.0)
    done, changed = checkpoints.restore(tmp_path, spec(learning_rate=2e-4, fork=True), new)
    assert (done, changed) == (70, ["learning_rate was 0.0001, not 0.0002"])
    assert np.array_equal(new.weights()[NAME], before.weights()[NAME])
    # A state that has no place for the change is no start for it.
    wider = spec(method="lora-te", fork=True)
    with pytest.raises(BadSpec, match='method was "lora", not "lora-te", and its state does not'):
        checkpoints.restore(tmp_path, wider, a_step(0.0, text=True))


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, spec(), a_step(0.0), 70)
    assert checkpoints.restore(tmp_path, spec(steps=70, fork=True), a_step(0.0))[0] == 70
    with pytest.raises(BadSpec, match="70 steps are done, more than steps 69; raise steps"):
        checkpoints.restore(tmp_path, spec(steps=69, fork=True), a_step(0.0))


@pytest.mark.parametrize("damage", ["no loop", "no json", "no step", "half", "no state"])
def test_a_folder_without_a_state_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    checkpoints.save(tmp_path, spec(), a_step(0.0), 70)
    loop, state = tmp_path / checkpoints.LOOP, tmp_path / checkpoints.STATE
    if damage == "no loop":
        loop.unlink()
    elif damage == "no json":
        loop.write_text("{half")
    elif damage == "no step":
        loop.write_text("{}")
    elif damage == "half":
        state.write_bytes(state.read_bytes()[:-3])
    else:
        state.unlink()
    with pytest.raises(BadData, match="holds no state of a run") as caught:
        checkpoints.restore(tmp_path, spec(), a_step(0.0))
    assert "\n" not in str(caught.value)


def test_a_run_whose_states_are_all_damaged_ends_with_65_and_one_line(tmp_path: Path) -> None:
    store, files = FileStore(tmp_path / "store"), tmp_path / "files"
    files.mkdir()
    checkpoints.save(files, spec(), a_step(0.0), 70)
    prefix = f"r/checkpoints/{layout.step_name(70)}"
    commits.commit(store, prefix, files)
    path = tmp_path / "store" / prefix / checkpoints.STATE
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    given = {
        "JOB_SPEC": specs.to_json(spec(model="tiny", data="tiny")), "JOB_RUN": "r",
        "JOB_STORE": str(tmp_path / "store"), "JOB_UID": "u", "JOB_WORK": str(tmp_path / "work"),
        "JOB_DEVICE": "CPU", "TERMINATION_LOG": str(tmp_path / "term"),
    }  # fmt: skip
    program = [sys.executable, "-m", "jobs.runtime"]
    ended = subprocess.run(
        program,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 65, ended.stdout + ended.stderr
    told = (tmp_path / "term").read_text()
    assert told.startswith("65 bad data: run 'r': no committed step is whole")
    assert "70" in told
    assert told.count("\n") == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    assert commits.committed_steps(store, "r") == [70], "left for a repair"


def test_a_data_set_that_has_changed_is_named(tmp_path: Path) -> None:
    from jobs import latents, pipelines, train
    from jobs.data import load
    from jobs.environment import Environment, Worker
    from jobs.gang import Gang
    from jobs.tiny import folders

    pictures, folder = tmp_path / "pictures", tmp_path / "step-00000070"
    folder.mkdir()
    folders.write(pictures, folders.flat(0, range(4)))
    env = Environment(
        spec="", run="r", store=str(tmp_path / "s"), uid="u", work=tmp_path / "work",
        cache=tmp_path / "cache", device="CPU",
    )  # fmt: skip
    given = spec(model="tiny", data=str(pictures))
    base = pipelines.locate("tiny", "", env)

    def seen() -> tuple[Any, latents.Encoded]:
        captioned = load(given, env)
        gang = Gang.of(env, Worker(0, 1))
        samples = latents._keys(captioned, base, given, env, gang)[2]
        shelf: Any = None
        return captioned, latents.Encoded(shelf, shelf, len(captioned.captions), 1, samples)

    captioned, encoded = seen()
    assert len(encoded.samples) == 4 * latents.SAMPLE_HEX
    checkpoints.save(folder, given, a_step(0.0), 70, samples=encoded.samples)
    assert train.check_samples(folder, captioned, encoded, given) == []
    names = sorted(path.name for path in pictures.glob("*.png"))
    (pictures / names[2]).write_bytes((pictures / names[1]).read_bytes())
    with pytest.raises(BadData, match=rf"changed since step-00000070: .*{names[2]} is another"):
        train.check_samples(folder, *seen(), given)
    told = train.check_samples(folder, *seen(), given.model_copy(update={"fork": True}))
    assert len(told) == 1
    assert names[2] in told[0]
    # A checkpoint of before the samples were written down says nothing.
    loop = json.loads((folder / checkpoints.LOOP).read_text())
    del loop["samples"]
    (folder / checkpoints.LOOP).write_text(json.dumps(loop))
    assert train.check_samples(folder, *seen(), given) == []
