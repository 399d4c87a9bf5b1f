from __future__ import annotations

import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import launcher.methods
from jobs import specs
from launcher import options
from launcher.errors import Misconfigured, NotFound, Usage
from launcher.methods import Request, resolve

FOLDER = Path(launcher.methods.__file__).parent
PROMPT = {"prompts": ({"line": 1, "prompt": "a cat"},)}


def train(**wanted):
    return resolve(Request(kind="train", **{"flags": {}} | wanted))


# Rows of the reference's table, and the number of steps its text names.
@pytest.mark.parametrize(
    ("method", "resolution", "steps"),
    [("vanilla", 512, 10_000), ("lora", 1024, 10_000), ("lora-te", 1024, 8_500)],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_each_row_of_the_reference_runs_by_name(method, resolution, steps, precision):
    spec = train(flags={"method": method, "precision": precision}).spec
    assert (spec.method, spec.resolution, spec.steps) == (method, resolution, steps)
    assert (spec.precision, spec.batch_size) == (precision, 1)
    assert spec.data == "YaYaB/onepiece-blip-captions"
    assert spec.model == "stabilityai/stable-diffusion-xl-base-1.0"


def test_lora_in_half_precision_is_the_default():
    assert (train().spec.method, train().spec.precision) == ("lora", "fp16")


def test_files_flags_and_spec_know_the_same_methods():
    files = {path.stem for path in FOLDER.glob("*.yaml")} - {"tiny"}
    assert files == set(typing.get_args(specs.Method)) == set(typing.get_args(options.Method))
    for name in files:
        assert yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["method"] == name
    (choices,) = [
        arg for arg in typing.get_args(options.Precision.__origin__) if arg is not type(None)
    ]
    assert choices == specs.Precision


LAYERS = st.fixed_dictionaries({}, optional={"file": st.integers(1, 99), "set": st.integers(1, 99),
                                             "flag": st.integers(1, 99)})  # fmt: skip


@given(LAYERS, st.booleans(), st.sampled_from(["vanilla", "lora", "lora-te"]))
def test_the_strongest_layer_wins_and_is_named(tmp_path_factory, layers, tiny, method):
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(f"save_every: 7\nsteps: {layers['file']}\n" if "file" in layers else "")
    flags = {"method": method} | ({"model": "tiny"} if tiny else {})
    found = train(
        flags=flags | ({"steps": layers["flag"]} if "flag" in layers else {}),
        sets=[f"steps={layers['set']}"] if "set" in layers else [],
        spec_file=path,
    )
    below = (
        (160, "model tiny")
        if tiny
        else (8500 if method == "lora-te" else 10_000, f"method {method}")
    )
    above = (("file", str(path)), ("set", "--set"), ("flag", "--steps"))
    chain = [below, *((layers[key], name) for key, name in above if key in layers)]
    assert (found.spec.steps, found.origins["steps"]) == chain[-1]
    assert found.origins["weight_decay"] == "default"
    if "file" in layers:
        assert (found.spec.save_every, found.origins["save_every"]) == (7, str(path))


def test_locally_model_and_data_are_the_tiny_ones():
    found = train(local=True)
    assert (found.spec.model, found.spec.data, found.spec.resolution) == ("tiny", "tiny", 128)
    assert found.origins["model"] == found.origins["data"] == "default of the local backend"
    assert found.origins["resolution"] == "model tiny"
    other = train(local=True, flags={"model": "/models/sdxl"})
    assert (other.spec.model, other.spec.data, other.spec.resolution) == (
        "/models/sdxl",
        "tiny",
        1024,
    )


@pytest.mark.parametrize("method", ["vanilla", "lora", "lora-te"])
def test_the_learning_rate_of_tiny_goes_by_the_method(method):
    overlay = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    found = train(local=True, flags={"method": method})
    assert found.spec.learning_rate == overlay[method]["learning_rate"]
    assert found.origins["learning_rate"] == "model tiny"


def test_tiny_overlay_of_inference():
    found = resolve(Request(kind="infer", flags=PROMPT, local=True))
    assert (found.spec.width, found.spec.height, found.spec.precision) == (128, 128, "fp32")


@pytest.mark.parametrize("part", ["train", "infer", "lora", "lora-te", "vanilla"])
def test_the_overlay_holds_known_keys(part):
    overlay = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    model = specs.InferSpec if part == "infer" else specs.TrainSpec
    assert overlay.pop(part).keys() <= model.model_fields.keys()
    assert overlay.keys() <= {"train", "infer", "lora", "lora-te", "vanilla"}


def test_set_is_typed_by_the_spec():
    spec = train(
        sets=["learning_rate=3e-5", "lora_rank=16", 'validation_prompts=["a, b", c]', "data=007"]
    ).spec
    assert (spec.learning_rate, spec.lora_rank, spec.data) == (3e-5, 16, "007")
    assert spec.validation_prompts == ("a, b", "c")
    infer = resolve(
        Request(kind="infer", flags=PROMPT, sets=["lora=null", "negative=[x]", "lora_weight=.5"])
    ).spec
    assert infer.lora is None
    assert infer.lora_weight == 0.5


def test_a_runs_own_record_is_a_spec_file(tmp_path):
    first = train(flags={"steps": 7}).spec
    path = tmp_path / "spec.json"
    path.write_text(f'{{"spec": {specs.to_json(first)}, "sha256": "0", "attempts": 2}}')
    assert train(spec_file=path).spec == first


@pytest.mark.parametrize(
    ("wanted", "error", "told", "hint"),
    [
        ({"sets": ["stesp=3"]}, Misconfigured, "--set stesp: no such key", "did you mean steps"),
        ({"sets": ["data_gib=1"]}, Misconfigured, "setting of launcher.toml", "LAUNCHER_DATA_GIB"),
        ({"sets": ["kind=infer"]}, Misconfigured, "--set kind: no such key", ""),
        ({"sets": ["steps"]}, Usage, "--set 'steps': wants key=value", ""),
        ({"sets": ["steps=many"]}, Misconfigured, "steps: ", "steps comes from --set"),
        ({"sets": ["validation_prompts=[a"]}, Misconfigured, "--set validation_prompts: ", ""),
        ({"sets": ["lora_targets=to_q"]}, Misconfigured, "a list, such as [to_q], not", "--set"),
        ({"flags": {"resolution": 100}}, Misconfigured, "resolution: ", "comes from --resolution"),
        ({"flags": {"method": "loar"}}, Misconfigured, "no such method 'loar'", "lora"),
        ({"flags": {"steps": 0}, "sets": ["seed=-1"]}, Misconfigured, "steps: ", "seed comes from"),
    ],
)  # fmt: skip
def test_a_bad_value_is_told_by_key_and_place(wanted, error, told, hint):
    with pytest.raises(error) as caught:
        train(**wanted)
    assert told in caught.value.text
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stesp: 3", "stesp: no such key in the spec of train"),
        ("- steps", "is not a mapping of keys"),
        ("1: 2", "is not a mapping of keys"),
        ("steps: [", "is not YAML"),
        ("kind: infer", "is a spec of 'infer', not of train"),
    ],
)
def test_a_bad_spec_file_is_told_by_path(tmp_path, text, told):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(Misconfigured) as caught:
        train(spec_file=path)
    assert caught.value.text.startswith(str(path))
    assert told in caught.value.text


def test_a_spec_file_has_to_exist(tmp_path):
    with pytest.raises(NotFound, match=r"gone\.yaml: no such file"):
        train(spec_file=tmp_path / "gone.yaml")
