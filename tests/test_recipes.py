"""The recipe in a picture: what web UIs show, and what paints it again."""

from __future__ import annotations

import io
import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from jobs import batches, pictures, recipes, specs
from jobs.errors import BadData
from jobs.inferspec import Scheduler
from jobs.specs import InferSpec, PromptRow

ROW: dict[str, Any] = {
    "line": 17, "image": 2, "prompt": "a caf\u00e9,\nred", "negative": "blur: \u4e2d", "seed": 0,
    "scheduler": "EulerAncestral", "steps": 20, "guidance": 7.5, "guidance_rescale": 0.7,
    "width": 128, "height": 64, "slot": 1, "batch_size": 4, "model": "a/b", "precision": "fp32",
    "model_revision": "main", "lora": "style", "lora_step": 60, "lora_weight": 0.8,
}  # fmt: skip


def read_back(row: dict[str, Any]) -> dict[str, str]:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    png = pictures.to_png(pixels, recipes.texts(row))
    assert png == pictures.to_png(pixels, recipes.texts(row))
    with Image.open(io.BytesIO(png)) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
        return {str(key): str(value) for key, value in picture.info.items()}


def test_the_text_has_the_form_of_web_uis() -> None:
    assert read_back(ROW)["parameters"] == (
        "a caf\u00e9, red\n"
        "Negative prompt: blur: \u4e2d\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 0, Size: 128x64, Model: a/b, "
        "CFG Rescale: 0.7, Lora: style"
    )


@pytest.mark.parametrize(("image", "slot"), [(2, 1), (0, 3), (1, 0), (3, 2)])
def test_a_recipe_asks_for_the_same_picture_at_the_same_place(image: int, slot: int) -> None:
    keys = recipes.spec_of(read_back({**ROW, "image": image, "slot": slot}), "p.png")
    spec = specs.parse({"kind": "infer", **keys})
    assert isinstance(spec, InferSpec)
    assert isinstance(spec.prompts, tuple)
    (batch,) = batches.plan(spec.prompts, spec)
    (request,) = batch.pictures
    assert batch.slots.index(request) == slot
    assert len(batch.slots) == 4
    assert (request.line, request.image, request.prompt) == (17, image, ROW["prompt"])
    assert (request.negative, request.seed) == (ROW["negative"], 0)
    assert (request.guidance, request.rescale) == (7.5, 0.7)
    assert (batch.steps, batch.scheduler, batch.width, batch.height) == (
        20, "EulerAncestral", 128, 64,
    )  # fmt: skip
    assert (spec.model, spec.lora, spec.lora_step, spec.lora_weight) == ("a/b", "style", 60, 0.8)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({}, "p.png: carries no recipe"),
        ({"parameters": "x"}, "its parameters are of another program"),
        ({"recipe": "{"}, "its recipe is damaged"),
        ({"recipe": "[]"}, "its recipe is damaged"),
        ({"recipe": json.dumps({**ROW, "slot": 4})}, "its recipe is damaged"),
        ({"recipe": json.dumps({**ROW, "line": 0})}, "its recipe is damaged"),
        ({"recipe": json.dumps({**ROW, "line": math.inf})}, "its recipe is damaged"),
        ({"recipe": json.dumps({**ROW, "line": 10**30})}, "its recipe is damaged"),
        ({"recipe": json.dumps({**ROW, "prompt": ""})}, "its recipe is damaged"),
    ],
)
def test_what_is_no_recipe_is_refused(texts: dict[str, str], told: str) -> None:
    with pytest.raises(BadData) as caught:
        recipes.spec_of(texts, "p.png")
    assert told in str(caught.value)


def test_every_sampler_has_a_name_in_web_uis() -> None:
    assert set(get_args(Scheduler)) == set(recipes.SAMPLERS)


def test_what_is_not_set_is_left_out() -> None:
    row = recipes.recipe(
        {"line": 1}, InferSpec(model="m", prompts=(PromptRow(line=1, prompt="x"),)), 5
    )
    assert "lora" not in row
    assert row["model"] == "m"
    assert "Lora" not in recipes.texts(row)["parameters"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(np.nan, "not a number"), (np.inf, "not a number"), (-1.0, "black"), (-3.0, "black"),
     (-0.9, ""), (1.0, "")],
)  # fmt: skip
def test_a_picture_that_is_none_is_told(value: float, told: str) -> None:
    picture = np.full((3, 4, 4), -1.0, np.float32)
    picture[0, 1, 2] = value
    assert pictures.fault(picture).startswith(told)
    assert bool(pictures.fault(picture)) == bool(told)
