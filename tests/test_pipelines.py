"""A model may be a single file, and have another VAE: what is loaded is the same, to the bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from jobs import model, originals, pipelines
from jobs.environment import Environment
from jobs.errors import BadSpec

Arrays = dict[str, NDArray[Any]]

RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)  # fmt: skip
UNET_ENDS = (
    ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
)  # fmt: skip
VAE_WORDS = (
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."), (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
)  # fmt: skip
OPEN_CLIP = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
)  # fmt: skip


def unet_name(name: str, layers: int) -> str:
    """Return the authors' name of a UNet's weight (generative-models, openaimodel.py)."""
    for ours, theirs in UNET_ENDS:
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.", name)
    if found:
        side, block, kind, layer = found[1], int(found[2]), found[3], int(found[4])
        rest = name[found.end() :]
        first = side == "down"
        at = (layers + 1) * block + layer + first
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.partition('.')[2]}"
        if kind == "upsamplers":
            # Behind the resnet and, in the block that has it, the attention.
            return f"output_blocks.{(layers + 1) * block + layers}.2.{rest}"
        head = f"{'input' if first else 'output'}_blocks.{at}.{int(kind == 'attentions')}"
    else:
        found = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.", name)
        assert found, name
        kind, rest = found[1], name[found.end() :]
        head = f"middle_block.{1 if kind == 'attentions' else 2 * int(found[2])}"
    if kind == "resnets":
        for ours, theirs in RESNET:
            rest = rest.replace(ours, theirs)
    return f"{head}.{rest}"


def vae_name(name: str) -> str:
    """Return the authors' name of a VAE's weight."""
    for pattern, theirs in VAE_WORDS:
        name = re.sub(pattern, theirs, name)
    # The decoder counts its blocks from the picture's side.
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block", name)
    return re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", name
    )


def open_clip(arrays: Arrays) -> Arrays:
    """Return the second text encoder's weights as OpenCLIP has them."""
    found: Arrays = {}
    for name, array in arrays.items():
        if name == "text_projection.weight":
            found["text_projection"] = np.ascontiguousarray(array.T)
            continue
        for ours, theirs in OPEN_CLIP:
            name = name.replace(ours, theirs)
        if ".q_proj." in name:
            rows = [arrays_of(arrays, name, letter) for letter in "qkv"]
            name = name.replace(".q_proj.", ".in_proj_")
            array = np.concatenate(rows)
        if ".k_proj." not in name and ".v_proj." not in name:
            found[name] = array
    return found


def arrays_of(arrays: Arrays, name: str, letter: str) -> NDArray[Any]:
    layer = re.search(r"resblocks\.(\d+)\.attn\.q_proj\.(\w+)", name)
    assert layer
    head = f"text_model.encoder.layers.{layer[1]}.self_attn"
    return arrays[f"{head}.{letter}_proj.{layer[2]}"]


def vae_arrays(folder: Path) -> Arrays:
    """Return a folder's VAE in the authors' naming; its attention was convolutions of 1 x 1."""
    found = {vae_name(name): array for name, array in weights(folder, "vae").items()}
    return {
        name: array[..., None, None] if re.search(r"attn_1\.\w+\.weight", name) and array.ndim == 2
        else array
        for name, array in found.items()
    }  # fmt: skip


def weights(folder: Path, part: str) -> Arrays:
    return load_file(folder / part / pipelines.WEIGHTS[part])


def original(folder: Path) -> Arrays:
    """Return a pipeline folder's weights as one checkpoint in the authors' naming."""
    unet = {unet_name(name, 1): array for name, array in weights(folder, "unet").items()}
    found = {f"{originals.UNET}{name}": array for name, array in unet.items()}
    found |= {f"{originals.VAE}{name}": array for name, array in vae_arrays(folder).items()}
    first, second = weights(folder, "text_encoder"), weights(folder, "text_encoder_2")
    found |= {f"{originals.FIRST}{name}": array for name, array in first.items()}
    found |= {f"{originals.SECOND}{name}": array for name, array in open_clip(second).items()}
    positions = f"{originals.FIRST}text_model.embeddings.position_ids"
    return found | {positions: np.arange(77, dtype=np.int64)[None]}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    place = tmp_path_factory.mktemp("pipelines")
    return Environment(
        spec="", run="r", store=str(place), uid="u", work=place / "work", cache=place / "cache",
        device="CPU",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(env: Environment, random_sdxl: Path) -> Path:
    found = env.work.with_name("small")
    found.symlink_to(random_sdxl)
    return found


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "small-xl.safetensors"
    save_file(original(folder), path)
    return path


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])
        for name in one
    )


def located(value: str, env: Environment, **more: Any) -> Path:
    base = str(env.work.with_name("small"))
    return pipelines.locate(value, "main", env, config_from=base, **more)


def test_a_single_file_is_the_folder_to_the_bit(
    env: Environment, folder: Path, single: Path
) -> None:
    found = located(str(single), env)
    assert found.name.startswith("small-xl-")
    for part in pipelines.WEIGHTS:
        assert same(weights(found, part), weights(folder, part)), part
        assert model.config(found, part) == model.config(folder, part)
    for name in ("tokenizer/vocab.json", "tokenizer_2/merges.txt", "model_index.json"):
        assert (found / name).read_bytes() == (folder / name).read_bytes()
    (found / "mark").touch()
    assert located(str(single), env) == found
    assert (found / "mark").exists(), "made again"
    (found / "mark").unlink()


def test_what_is_loaded_of_a_single_file_computes_the_same(
    env: Environment, folder: Path, single: Path
) -> None:
    import mindspore as ms

    found = located(str(single), env)
    for load in (model.load_vae, lambda path: model.load_unet(path, ms.float32)):
        ours = {name: p.asnumpy() for name, p in load(found).parameters_and_names()}
        theirs = {name: p.asnumpy() for name, p in load(folder).parameters_and_names()}
        assert same(ours, theirs)
    text = "a red circle on white"
    one, other = (model.load_text_encoders(f, ms.float32).encode(text) for f in (found, folder))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_halves_and_bf16_are_read(
    env: Environment, folder: Path, single: Path, tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: a.astype(np.float16) for name, a in original(folder).items()}, path)
    unet = weights(located(str(path), env), "unet")
    assert {a.dtype for a in unet.values()} == {np.dtype(np.float16)}
    brain = np.asarray([1.5, -2.0, 0.0], np.float32)
    raw = (brain.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    assert np.array_equal(originals.read(path)["x"], brain)


def test_a_mark_of_velocities_reaches_the_scheduler(
    env: Environment, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "velocity.safetensors"
    save_file(original(folder) | {"v_pred": np.zeros(0, np.float32)}, path)
    found = located(str(path), env)
    assert model.config(found, "scheduler")["prediction_type"] == "v_prediction"
    assert model.config(folder, "scheduler")["prediction_type"] == "epsilon", "the base's own file"


@pytest.mark.parametrize("form", ["folder", "pipeline", "authors", "diffusers"])
def test_another_vae_takes_the_place_of_the_models(
    form: str, env: Environment, folder: Path, tmp_path: Path
) -> None:
    changed = {name: array * np.float32(0.5) for name, array in weights(folder, "vae").items()}
    whole = tmp_path / "other"
    (whole / "vae").mkdir(parents=True)
    save_file(changed, whole / "vae" / pipelines.WEIGHTS["vae"], {"format": "pt"})
    settings = model.config(folder, "vae") | {"scaling_factor": 0.5}
    (whole / "vae" / "config.json").write_text(json.dumps(settings))
    places = {"folder": whole / "vae", "pipeline": whole}
    file = tmp_path / "vae.safetensors"
    save_file(vae_arrays(whole) if form == "authors" else changed, file)
    found = located(str(folder), env, vae=str(places.get(form, file)))
    assert same(weights(found, "vae"), changed)
    assert same(weights(found, "unet"), weights(folder, "unet"))
    # A single file has no configuration: the model's own holds.
    wanted = 0.5 if form in places else 0.13025
    assert model.config(found, "vae")["scaling_factor"] == wanted
    assert model.config(folder, "vae")["scaling_factor"] == 0.13025


def test_another_vae_is_another_key_of_the_latents(
    env: Environment, folder: Path, single: Path, tmp_path: Path
) -> None:
    from jobs import latents
    from jobs.data import load
    from jobs.environment import Worker
    from jobs.gang import Gang
    from jobs.specs import TrainSpec

    file = tmp_path / "vae.safetensors"
    save_file({name: a * np.float32(2) for name, a in weights(folder, "vae").items()}, file)
    spec = TrainSpec(model="tiny", data="tiny", resolution=64, precision="fp32")
    captioned, gang = load(spec, env), Gang.of(env, Worker(0, 1))
    other = located(str(folder), env, vae=str(file))
    keys = [
        latents._keys(captioned, where, spec, env, gang)
        for where in (folder, located(str(single), env), other)
    ]
    assert keys[0] == keys[1], "the same weights, whatever they were read from"
    assert keys[0][0] != keys[2][0]
    assert keys[0][1] == keys[2][1]


def test_what_is_no_sdxl_is_refused(env: Environment, folder: Path, tmp_path: Path) -> None:
    good = original(folder)
    path = tmp_path / "x.safetensors"

    def reason(content: Arrays | bytes, **more: str) -> str:
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path)
        with pytest.raises(BadSpec) as caught:
            model.load_unet(located(str(path), env, **more), model.DTYPES["fp32"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    save_file(good, path)
    whole = path.read_bytes()
    assert "no whole safetensors file" in reason(whole[:-5])
    assert "no whole safetensors file" in reason(whole + b"more")
    assert "no whole safetensors file" in reason(b"PK\x03\x04 a pickle" * 9)
    assert "no whole safetensors file" in reason(b"")
    lora = {"lora_unet_down_blocks_0.lora_up.weight": np.zeros((4, 4), np.float32)}
    assert "no unet and no vae and no text_encoder" in reason(lora)
    only = {name: a for name, a in good.items() if not name.startswith(originals.SECOND)}
    assert "has no text_encoder_2 of SDXL" in reason(only)
    short = dict(good)
    del short[f"{originals.UNET}middle_block.1.norm.weight"]
    assert "its unet lacks 1 weights, as mid_block.attentions.0.norm.weight" in reason(short)
    name = f"{originals.UNET}out.2.weight"
    assert "its unet cannot be loaded" in reason(good | {name: good[name][:2]})
    assert "has no encoder of a VAE" in reason(good, vae=str(folder / "unet" / UNET_FILE))


UNET_FILE = pipelines.WEIGHTS["unet"]


def test_what_is_not_there_or_may_run_code_is_refused(env: Environment, tmp_path: Path) -> None:
    pickle = tmp_path / "x.ckpt"
    pickle.write_bytes(b"")
    for value, words in (
        (str(pickle), "is no .safetensors file"),
        (str(tmp_path / "none.safetensors"), "no such folder or file"),
        (str(tmp_path), "no model_index.json in it"),
        ("a/b/c", "not a hub id"),
    ):
        with pytest.raises(BadSpec, match=words):
            located(value, env)
