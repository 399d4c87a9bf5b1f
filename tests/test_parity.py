"""Our LoRA files and pipelines in other hands: PyTorch's diffusers and mindone compute the same.

What PyTorch computes of the small SDXL is in golden/pytorch.safetensors, compared by the default
suite. `PYTORCH=PYTHON pytest -m parity` asks it again, and with UPDATE_GOLDEN=1 writes the file
anew, as a change of jobs/tiny/pipeline.py needs. PYTHON is described in pytorch_peer.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from jobs import layout, lora, model  # noqa: E402
from jobs.compat import eager  # noqa: E402
from jobs.specs import LORA_TARGETS  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "pytorch.safetensors"
PEER = Path(__file__).parent / "pytorch_peer.py"
PROMPT = "a red circle above a blue square"
ALPHA, RANK = 8.0, 2
CLOSE = 1e-3
Arrays = dict[str, np.ndarray]


def inputs() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"noisy": (2, 4, 16, 16), "embeds": (2, 77, 128), "pooled": (2, 64)}
    found = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    found["timesteps"] = np.array([7, 500], np.int64)
    sizes = [[128, 128, 0, 0, 128, 128], [96, 200, 0, 31, 128, 128]]
    return found | {"time_ids": np.asarray(sizes, np.float32)}


class Ours:
    """UNet and text encoders of a pipeline folder, in our hands."""

    def __init__(self, folder: Path) -> None:
        self.unet = model.load_unet(folder, ms.float32)
        self.encoders = model.load_text_encoders(folder, ms.float32)
        first, second = self.encoders.cells
        self.cells = {"unet": self.unet, "text_encoder": first, "text_encoder_2": second}

    def inject(self) -> Arrays:
        """Put a LoRA with numbers of its own into all three; return its arrays."""
        rng = np.random.default_rng(1)
        shape = lora.Shape(rank=RANK, alpha=ALPHA, seed=0)
        trained: dict[str, Any] = {}
        for name, cell in self.cells.items():
            targets = LORA_TARGETS if name == "unet" else lora.TEXT_TARGETS
            trained |= lora.inject(cell, name, targets, shape)
        for parameter in trained.values():
            value = 0.1 * rng.standard_normal(parameter.shape)
            parameter.set_data(ms.Tensor(value.astype(np.float32)))
        return {name: parameter.asnumpy() for name, parameter in trained.items()}

    def look(self) -> Arrays:
        given = {name: ms.Tensor(value) for name, value in inputs().items()}
        conditions = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
        with eager():
            noise = self.unet(
                given["noisy"], given["timesteps"], given["embeds"], added_cond_kwargs=conditions
            )[0].asnumpy()
        embeds, pooled = self.encoders.encode(PROMPT)
        return {"noise": noise, "embeds": embeds[None, :12], "pooled": pooled[None]}


def write_lora(path: Path, arrays: Arrays) -> None:
    save_file(lora.diffusers_weights(arrays, ALPHA / RANK), path, {"format": "pt"})


def gap(ours: Arrays, theirs: Arrays, which: str) -> float:
    return max(float(np.abs(value - theirs[f"{n}.{which}"]).max()) for n, value in ours.items())


def test_a_trained_lora_computes_what_pytorch_computes_with_its_file(
    random_sdxl: Path, tmp_path: Path
) -> None:
    theirs, ours = load_file(GOLDEN), Ours(random_sdxl)
    assert gap(ours.look(), theirs, "plain") < CLOSE
    arrays = ours.inject()
    assert gap(ours.look(), theirs, "lora") < CLOSE, "as it is while it is trained"
    write_lora(tmp_path / layout.LORA_FILE, arrays)
    merged = Ours(random_sdxl)
    lora.merge(merged.cells, lora.read(tmp_path / layout.LORA_FILE), 1.0)
    assert gap(merged.look(), theirs, "lora") < CLOSE, "as it is painted with"
    for name in ("noise", "embeds", "pooled"):
        assert np.abs(theirs[f"{name}.lora"] - theirs[f"{name}.plain"]).max() > 0.05


def test_a_lora_file_says_pt_and_has_diffusers_names(random_sdxl: Path, tmp_path: Path) -> None:
    path = tmp_path / layout.LORA_FILE
    write_lora(path, Ours(random_sdxl).inject())
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        names = set(opened.keys())
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight" in (
        names
    )
    assert "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight" in names


@pytest.fixture
def pytorch(missing: Callable[[str, str], NoReturn]) -> str:
    found = os.environ.get("PYTORCH", "")
    if not shutil.which(found):
        missing("parity", "PYTORCH names no Python with torch and diffusers")
    return found


@pytest.mark.parity
def test_pytorchs_diffusers_reads_our_pipeline_and_our_lora(
    random_sdxl: Path, tmp_path: Path, pytorch: str
) -> None:
    ours = Ours(random_sdxl)
    plain = ours.look()
    write_lora(tmp_path / layout.LORA_FILE, ours.inject())
    save_file(inputs(), tmp_path / "inputs")
    command = [pytorch, str(PEER), *map(str, (random_sdxl, tmp_path / layout.LORA_FILE))]
    files = [str(tmp_path / "inputs"), str(tmp_path / "outputs")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([*command, *files], check=True, env=clean)
    theirs = load_file(tmp_path / "outputs")
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.copy(tmp_path / "outputs", GOLDEN)
    print(
        json.dumps({"plain": gap(plain, theirs, "plain"), "lora": gap(ours.look(), theirs, "lora")})
    )
    assert gap(plain, theirs, "plain") < CLOSE
    assert gap(ours.look(), theirs, "lora") < CLOSE
    golden = load_file(GOLDEN)
    assert golden.keys() == theirs.keys()
    assert all(np.abs(golden[name] - theirs[name]).max() < 1e-5 for name in theirs)


@pytest.mark.parity
def test_mindones_pipeline_reads_our_lora(random_sdxl: Path, tmp_path: Path) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    ours = Ours(random_sdxl)
    write_lora(tmp_path / layout.LORA_FILE, ours.inject())
    with eager():
        pipe = StableDiffusionXLPipeline.from_pretrained(
            str(random_sdxl), mindspore_dtype=ms.float32
        )
        pipe.load_lora_weights(str(tmp_path), weight_name=layout.LORA_FILE)
    theirs = Ours(random_sdxl)
    theirs.unet = pipe.unet
    assert np.abs(theirs.look()["noise"] - ours.look()["noise"]).max() < 2e-3
