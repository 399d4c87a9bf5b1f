"""Owns the names in LoRA files: keys in diffusers' or kohya's naming -> updates of modules. Pure.

Standard library alone: the launcher judges a file by its header with it. Must not read files.

    diffusers, peft   unet.<module>.lora_A.weight, .lora_B.weight; .lora.down/.up.weight;
                      <attention>.processor.to_q_lora.down.weight; .lora_linear_layer.down.weight
    kohya             lora_unet_<module with _ for .>.lora_down.weight, .lora_up.weight, .alpha;
                      lora_te1_..., lora_te2_...; blocks as diffusers or as SDXL's authors name them
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import BadSpec
from jobs.tensors import Shape

PARTS = ("unet", "text_encoder", "text_encoder_2")
METADATA = "lora_adapter_metadata"
"""Key of a file's metadata in which newer versions of diffusers keep rank and alpha, as JSON."""

_KEY = re.compile(
    r"(?P<stem>.+?)(?:\.(?P<ab>lora_[AB])(?:\.default)?\.weight"
    r"|(?:[._]lora|\.lora_linear_layer)[._](?P<way>down|up)\.weight|\.(?P<alpha>alpha))"
)
_KOHYA = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
          "lora_te_": "text_encoder"}  # fmt: skip
_NONE = "holds no LoRA in diffusers' or kohya's naming"
_UNREAD = ("alpha_pattern", "use_rslora", "use_dora")
_RESNET = (
    ("conv1", "in_layers.2"), ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Update:
    """One module's `W + alpha / rank * up @ down`."""

    module: str
    """`<part>.<path>`, as mindone and diffusers name it."""
    down: str
    """Key of the array of [rank, in] or [rank, in, h, w]."""
    up: str
    """Key of the array of [out, rank] or [out, rank, 1, 1]."""
    rank: int
    alpha: str | float | None
    """Key of the number, or the number; none means the rank."""


def updates(
    keys: Mapping[str, Shape],
    modules: Mapping[str, Shape],
    what: str,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Update, ...]:
    """Return what a LoRA changes, in order of module.

    Args:
        keys: shape of each array in the file.
        modules: shape of the weight of each module of the model, by `<part>.<path>`.
        what: what messages call the file.
        metadata: of the file.

    Raises:
        BadSpec: a key is of another kind, has no partner, or its module is missing in the model or
            of another size; the first such key is named, with both shapes.
    """
    names = _Names(modules)
    found: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        role, module = names.read(key, what)
        shown = f"{what}: {key} {list(keys[key])}"
        if module not in modules:
            raise BadSpec(f"{shown}: the model has no such module")
        if role in found.setdefault(module, {}):
            raise BadSpec(f"{shown}: its module has another update, {found[module][role]}")
        found[module][role] = key
    if not found:
        raise BadSpec(f"{what}: {_NONE}")
    alphas = _alphas(metadata or {}, what)
    return tuple(
        _update(module, roles, keys, modules[module], what, alphas.get(module.partition(".")[0]))
        for module, roles in sorted(found.items())
    )


def judge(keys: Iterable[str], what: str) -> None:
    """Look at a LoRA's keys where the model is not at hand.

    Raises:
        BadSpec: a key is of another kind, or there is none.
    """
    names = _Names(())
    if not any(names.read(key, what)[0] == "down" for key in sorted(keys)):
        raise BadSpec(f"{what}: {_NONE}")


def _update(
    module: str,
    roles: Mapping[str, str],
    keys: Mapping[str, Shape],
    weight: Shape,
    what: str,
    alpha: float | None,
) -> Update:
    for role, other in (("down", "up"), ("up", "down"), ("alpha", "down")):
        if role in roles and other not in roles:
            raise BadSpec(f"{what}: {roles[role]}: the {other} matrix of that module is missing")
    down, up = keys[roles["down"]], keys[roles["up"]]
    rank = down[0] if down else 0
    # A convolution of 1 x 1 and a linear module hold the same numbers.
    rows, columns = weight[0], math.prod(weight[1:])
    same = down[1:] == weight[1:] or math.prod(weight[2:]) == 1 == math.prod(down[2:])
    if math.prod(down) != rank * columns or down[1:2] != weight[1:2] or not rank or not same:
        raise BadSpec(_misfit(what, roles["down"], down, module, weight))
    if up[:2] != (rows, rank) or math.prod(up) != rows * rank:
        raise BadSpec(_misfit(what, roles["up"], up, module, weight))
    if "alpha" in roles and math.prod(keys[roles["alpha"]]) != 1:
        raise BadSpec(f"{what}: {roles['alpha']} {list(keys[roles['alpha']])}: is no single number")
    return Update(module, roles["down"], roles["up"], rank, roles.get("alpha", alpha))


def _misfit(what: str, key: str, shape: Shape, module: str, weight: Shape) -> str:
    return f"{what}: {key} {list(shape)} does not fit the model's {module} {list(weight)}"


def _alphas(metadata: Mapping[str, str], what: str) -> dict[str, float]:
    """Return alpha by part, where the file's metadata say one.

    Raises:
        BadSpec: the metadata ask for what is not read: by module, rank-stabilised, DoRA.
    """
    try:
        rows: Any = json.loads(metadata.get(METADATA, "{}"))
        found = {part: float(rows[f"{part}.lora_alpha"]) for part in PARTS
                 if f"{part}.lora_alpha" in rows}  # fmt: skip
        odd = [key for key, value in rows.items() if value and key.rpartition(".")[2] in _UNREAD]
    except (ValueError, TypeError, AttributeError) as error:
        raise BadSpec(f"{what}: its {METADATA} cannot be read") from error
    if odd:
        raise BadSpec(f"{what}: its {METADATA} ask for {odd[0]}, which is not supported")
    return found


class _Names:
    """Keys of a file -> role and module, for one model."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._flat: dict[str, str] = {}
        modules = tuple(modules)
        layers = _layers(modules)
        for module in modules:
            part, _, path = module.partition(".")
            names = [path, *([original(path, layers)] if part == "unet" else [])]
            for name in names:
                self._flat[f"{part}.{name.replace('.', '_')}"] = module

    def read(self, key: str, what: str) -> tuple[str, str]:
        """Return `down`, `up` or `alpha`, and the module, which the model may lack."""
        found = _KEY.fullmatch(key)
        if found is None:
            raise BadSpec(
                f"{what}: {key}: is no key of a LoRA in diffusers' or kohya's naming (LoHa, LoKr, "
                "DoRA and textual inversions are not read)"
            )
        ways = {"lora_A": "down", "lora_B": "up"}
        role = found["way"] or ways.get(found["ab"] or "") or "alpha"
        stem = found["stem"]
        for start, part in _KOHYA.items():
            if stem.startswith(start):
                flat = f"{part}.{stem.removeprefix(start)}"
                return role, self._flat.get(flat, flat)
        return role, _dotted(stem)


def _dotted(stem: str) -> str:
    """Return the module of a stem in one of diffusers' older namings."""
    stem = stem.removesuffix("_lora").replace(".processor.", ".")
    if stem.startswith("unet."):
        return re.sub(r"\.to_out$", ".to_out.0", stem)
    return re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", stem)


def _layers(modules: Iterable[str]) -> int:
    """Return the number of residual blocks of each of the UNet's down blocks."""
    found = (re.match(r"unet\.down_blocks\.0\.resnets\.(\d+)\.", module) for module in modules)
    return len({match[1] for match in found if match})


def original(path: str, layers: int) -> str:
    """Return how SDXL's authors name a module of the UNet (Stability-AI/generative-models).

    Args:
        path: as diffusers names it.
        layers: residual blocks of each down block.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", path)
    if found is None:
        return path
    where, kind, rest = found[1], found[3], found[5]
    block, place = int(found[2] or 0), int(found[4])
    if kind == "resnets":
        for ours, theirs in _RESNET:
            rest = theirs if rest == ours else rest
    inner = 0 if kind == "resnets" else 1
    first = block * (layers + 1)
    if where == "mid":
        return f"middle_block.{2 * place + inner}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if kind == "upsamplers":
        # Behind a resnet and, in all blocks of SDXL that grow, an attention.
        return f"output_blocks.{first + layers}.2.{rest}"
    if where == "down":
        return f"input_blocks.{first + place + 1}.{inner}.{rest}"
    return f"output_blocks.{first + place}.{inner}.{rest}"
