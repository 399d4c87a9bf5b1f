"""What a model means at submission on this machine: its own size, and fp32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import models
from launcher.methods import DEFAULT_METHOD, Request, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    configs = {"unet": {"sample_size": 96}, "vae": {"block_out_channels": [8, 16, 32, 64]}}
    for part, config in configs.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    return tmp_path


def fitted(folder: object, kind: str, **flags: object) -> dict[str, object]:
    rows = {"model": str(folder)} | flags
    if kind == "infer":
        rows["prompts"] = [{"line": 1, "prompt": "x"}]
    resolved = resolve(Request(kind=kind, flags=rows, local=True))  # type: ignore[arg-type]
    return models.fitted(resolved.spec, resolved.origins).model_dump()


def test_a_folders_own_size_and_fp32_are_taken_where_nobody_chose(folder: Path) -> None:
    assert DEFAULT_METHOD == "lora"  # whose file says 1024 and fp16
    found = fitted(folder, "train")
    assert (found["resolution"], found["precision"]) == (768, "fp32")
    found = fitted(folder, "infer")
    assert (found["width"], found["height"], found["precision"]) == (768, 768, "fp32")


def test_what_was_chosen_stays(folder: Path) -> None:
    found = fitted(folder, "infer", width=512, precision="fp16")
    assert (found["width"], found["height"], found["precision"]) == (512, 1024, "fp16")
    assert fitted(folder, "train", resolution=64)["resolution"] == 64


def test_a_model_that_says_nothing_of_its_size_keeps_the_methods(folder: Path) -> None:
    assert fitted("owner/name", "train")["resolution"] == 1024
    (folder / "unet" / "config.json").write_text("{}")
    assert fitted(folder, "train")["resolution"] == 1024
    assert fitted("tiny", "train")["resolution"] == 128
