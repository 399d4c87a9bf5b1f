"""Names in LoRA files: which module a key changes, in each naming that is about, and what is told.

The names of SDXL's own modules are written out: diffusers' and its authors' ways to name them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs import adapters
from jobs.errors import BadSpec

ATTENTION = "transformer_blocks.0.attn1"
DOWN, UP = f"down_blocks.1.attentions.0.{ATTENTION}", f"up_blocks.0.attentions.1.{ATTENTION}"
TEXT = "text_model.encoder.layers.3.self_attn"
MODULES = {
    f"unet.{DOWN}.to_q": (640, 640),
    f"unet.{DOWN}.to_out.0": (640, 640),
    "unet.down_blocks.1.attentions.0.proj_in": (640, 640),
    "unet.down_blocks.0.resnets.0.conv1": (320, 320, 3, 3),
    "unet.down_blocks.0.resnets.1.conv1": (320, 320, 3, 3),
    "unet.down_blocks.1.resnets.0.time_emb_proj": (640, 1280),
    "unet.mid_block.attentions.0.proj_out": (1280, 1280),
    f"unet.{UP}.to_k": (1280, 2048),
    f"text_encoder.{TEXT}.q_proj": (768, 768),
    f"text_encoder_2.{TEXT}.out_proj": (1280, 1280),
}
Shapes = dict[str, tuple[int, ...]]


def pair(down: str, up: str, shape: tuple[int, ...], rank: int = 4) -> Shapes:
    return {down: (rank, *shape[1:]), up: (shape[0], rank, *(1 for _ in shape[2:]))}


@pytest.mark.parametrize(
    ("module", "stem", "ends"),
    [
        (f"unet.{DOWN}.to_q", f"unet.{DOWN}.to_q.", ("lora_A.weight", "lora_B.weight")),
        (f"unet.{DOWN}.to_q", f"unet.{DOWN}.to_q.", ("lora.down.weight", "lora.up.weight")),
        (f"unet.{DOWN}.to_q", f"unet.{DOWN}.processor.to_q_lora.", ("down.weight", "up.weight")),
        (f"unet.{DOWN}.to_out.0", f"unet.{DOWN}.processor.to_out_lora.",
         ("down.weight", "up.weight")),
        (f"text_encoder.{TEXT}.q_proj", f"text_encoder.{TEXT}.q_proj.lora_linear_layer.",
         ("down.weight", "up.weight")),
        (f"text_encoder_2.{TEXT}.out_proj", f"text_encoder_2.{TEXT}.to_out_lora.",
         ("down.weight", "up.weight")),
        (f"unet.{DOWN}.to_q", f"lora_unet_{DOWN.replace('.', '_')}_to_q.",
         ("lora_down.weight", "lora_up.weight")),
        (f"unet.{DOWN}.to_out.0", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.",
         ("lora_down.weight", "lora_up.weight")),
        ("unet.down_blocks.1.attentions.0.proj_in", "lora_unet_input_blocks_4_1_proj_in.",
         ("lora_down.weight", "lora_up.weight")),
        ("unet.down_blocks.0.resnets.1.conv1", "lora_unet_input_blocks_2_0_in_layers_2.",
         ("lora_down.weight", "lora_up.weight")),
        ("unet.down_blocks.1.resnets.0.time_emb_proj", "lora_unet_input_blocks_4_0_emb_layers_1.",
         ("lora_down.weight", "lora_up.weight")),
        ("unet.mid_block.attentions.0.proj_out", "lora_unet_middle_block_1_proj_out.",
         ("lora_down.weight", "lora_up.weight")),
        (f"unet.{UP}.to_k", "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_k.",
         ("lora_down.weight", "lora_up.weight")),
        (f"text_encoder.{TEXT}.q_proj", f"lora_te1_{TEXT.replace('.', '_')}_q_proj.",
         ("lora_down.weight", "lora_up.weight")),
        (f"text_encoder_2.{TEXT}.out_proj", f"lora_te2_{TEXT.replace('.', '_')}_out_proj.",
         ("lora_down.weight", "lora_up.weight")),
    ],
)  # fmt: skip
def test_each_naming_leads_to_its_module(module: str, stem: str, ends: tuple[str, str]) -> None:
    down, up = (stem + end for end in ends)
    keys = pair(down, up, MODULES[module])
    assert adapters.updates(keys, MODULES, "x") == (adapters.Update(module, down, up, 4, None),)
    adapters.judge(keys, "x")


def test_modules_of_sdxl_are_where_its_authors_have_them() -> None:
    found = {
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.resnets.2.conv_shortcut": "output_blocks.5.0.skip_connection",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
        "time_embedding.linear_2": "time_embed.2",
        "conv_out": "out.2",
    }
    assert {path: adapters.original(path, 2) for path in found} == found


def test_alpha_is_a_key_or_stands_in_the_metadata() -> None:
    stem = "lora_unet_middle_block_1_proj_out"
    keys = pair(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", (1280, 1280))
    (update,) = adapters.updates({**keys, f"{stem}.alpha": ()}, MODULES, "x")
    assert update.alpha == f"{stem}.alpha"
    told = {adapters.METADATA: json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    (update,) = adapters.updates(keys, MODULES, "x", told)
    assert update.alpha == 8.0
    for odd in ({"unet.use_dora": True}, {"unet.alpha_pattern": {"to_q": 2}}):
        with pytest.raises(BadSpec, match=next(iter(odd)).replace(".", r"\.")):
            adapters.updates(keys, MODULES, "x", {adapters.METADATA: json.dumps(odd)})


Q = f"unet.{DOWN}.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "x: holds no LoRA in diffusers' or kohya's naming"),
        (pair(f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", (640, 320)),
         f"x: {Q}.lora_A.weight [4, 320] does not fit the model's {Q} [640, 640]"),
        (pair(f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", (320, 640)),
         f"x: {Q}.lora_B.weight [320, 4] does not fit the model's {Q} [640, 640]"),
        ({f"{Q}.lora_A.weight": (4, 640), f"{Q}.lora_B.weight": (640, 8)},
         f"x: {Q}.lora_B.weight [640, 8] does not fit"),
        ({f"{Q}.lora_A.weight": (0, 640), f"{Q}.lora_B.weight": (640, 0)},
         f"x: {Q}.lora_A.weight [0, 640] does not fit"),
        ({f"{CONV}.lora_A.weight": (4, 320, 9, 1), f"{CONV}.lora_B.weight": (320, 4, 1, 1)},
         f"x: {CONV}.lora_A.weight [4, 320, 9, 1] does not fit"),
        ({f"{Q}.lora_A.weight": (4, 640)}, f"x: {Q}.lora_A.weight: the up matrix"),
        ({f"{Q}.lora_B.weight": (640, 4)}, f"x: {Q}.lora_B.weight: the down matrix"),
        (pair("unet.mid_block.a.lora_A.weight", "unet.mid_block.a.lora_B.weight", (6, 6)),
         "x: unet.mid_block.a.lora_A.weight [4, 6]: the model has no such module"),
        (pair("lora_unet_a_b.lora_down.weight", "lora_unet_a_b.lora_up.weight", (6, 6)),
         "x: lora_unet_a_b.lora_down.weight [4, 6]: the model has no such module"),
        ({"lora_unet_a_b.hada_w1_a": (6, 6)}, "x: lora_unet_a_b.hada_w1_a: is no key of a LoRA"),
        ({"unet.a.weight": (6, 6)}, "x: unet.a.weight: is no key of a LoRA"),
        (pair(f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", (640, 640))
         | pair(f"{Q}.lora.down.weight", f"{Q}.lora.up.weight", (640, 640)),
         "its module has another update"),
    ],
)  # fmt: skip
def test_the_first_key_that_does_not_fit_is_named(keys: Any, told: str) -> None:
    with pytest.raises(BadSpec) as caught:
        adapters.updates(keys, MODULES, "x")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_convolutions_are_products_too() -> None:
    """Of 3 x 3, and a linear module that a file holds as a convolution of 1 x 1."""
    stem = "lora_unet_input_blocks_1_0_in_layers_2"
    keys = pair(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", (320, 320, 3, 3))
    assert keys[f"{stem}.lora_up.weight"] == (320, 4, 1, 1)
    (update,) = adapters.updates(keys, MODULES, "x")
    assert update.module == "unet.down_blocks.0.resnets.0.conv1"
    stem = "lora_unet_input_blocks_4_1_proj_in"
    keys = pair(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", (640, 640, 1, 1))
    assert len(adapters.updates(keys, MODULES, "x")) == 1
