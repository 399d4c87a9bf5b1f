"""Owns low-rank adaptation: inject into a UNet, read and write diffusers' file, merge in place.

Must not train or sample. A module `W` of [out, in] gets `W + alpha / rank * B @ A` with A of
[rank, in] and B of [out, rank] (Hu et al. 2021, arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from jobs.dropout import KEY_NAME, Dropout
from jobs.errors import BadSpec

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The text encoders' attention projections, as diffusers' SDXL LoRA script trains them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How low-rank updates are made."""

    rank: int
    alpha: float
    seed: int
    dropout: float = 0.0
    key: Parameter | None = None
    """What the dropout's masks are made of; needed where there is dropout."""


class LoraDense(nn.Cell):  # type: ignore[misc]
    """A frozen Dense plus a trainable low-rank update; fp32 masters, computed in x's type."""

    def __init__(self, base: nn.Cell, name: str, shape: Shape) -> None:
        super().__init__()
        self.base = base
        rank = shape.rank
        self.scale = shape.alpha / rank
        outputs, inputs = base.weight.shape
        # Named by the module, not by the order of creation, so that each process starts equal.
        rng = np.random.Generator(np.random.Philox(key=[shape.seed, zlib.crc32(name.encode())]))
        down = rng.standard_normal((rank, inputs)) / rank
        self.down = Parameter(Tensor(down.astype(np.float32)), name=f"{name}.lora_A.weight")
        self.up = Parameter(
            Tensor(np.zeros((outputs, rank), np.float32)), name=f"{name}.lora_B.weight"
        )
        self.dropped = False

    def drop(self, name: str, shape: Shape) -> None:
        """Leave out a part of the update's inputs."""
        self.dropped = True
        self.dropout = Dropout(shape.dropout, shape.key, name, self.base.weight.shape[1])

    def construct(self, x: Tensor) -> Tensor:
        """Return [..., out] for [..., in]."""
        seen = self.dropout(x) if self.dropped else x
        down = ops.matmul(seen, self.down.astype(x.dtype).T)  # [..., in] -> [..., rank]
        return self.base(x) + ops.matmul(down, self.up.astype(x.dtype).T) * self.scale


def inject(
    cell: nn.Cell, prefix: str, targets: Iterable[str], shape: Shape
) -> dict[str, Parameter]:
    """Replace the target Dense modules of `cell` by `LoraDense`; return the new parameters.

    Everything else in `cell` is frozen. The names are `<prefix>.<module>.lora_A.weight` and
    `lora_B.weight`, in order of module.

    Raises:
        BadSpec: a target is the end of no linear module's name.
    """
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
    wanted = tuple(targets)
    found = {
        name: child
        for name, child in cell.cells_and_names()
        if isinstance(child, nn.Dense) and f".{name}".endswith(tuple(f".{t}" for t in wanted))
    }
    if lost := [t for t in wanted if not any(f".{name}".endswith(f".{t}") for name in found)]:
        leaves = {
            n.rpartition(".")[2] for n, c in cell.cells_and_names() if isinstance(c, nn.Dense)
        }
        raise BadSpec(
            f"lora_targets: no linear module of the {prefix} ends in {', '.join(map(repr, lost))}; "
            f"there are {', '.join(sorted(n for n in leaves if not n.isdigit()))}"
        )
    trained: dict[str, Parameter] = {}
    made: dict[str, LoraDense] = {}
    for name in sorted(found):
        parent_name, _, leaf = name.rpartition(".")
        parent = cell
        for part in filter(None, parent_name.split(".")):
            parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
        adapted = made[name] = LoraDense(found[name], f"{prefix}.{name}", shape)
        if leaf.isdigit():
            # Not by index: a list of cells guesses at names then, and fails at some (seen).
            parent.insert_child_to_cell(leaf, adapted)
        else:
            setattr(parent, leaf, adapted)
        # Assignment renamed them after the leaf alone. Names must be unique: a graph from the
        # compile cache finds its parameters by name (seen: NaN from the second run on).
        adapted.down.name = f"{prefix}.{name}.lora_A.weight"
        adapted.up.name = f"{prefix}.{name}.lora_B.weight"
        trained[f"{prefix}.{name}.lora_A.weight"] = adapted.down
        trained[f"{prefix}.{name}.lora_B.weight"] = adapted.up
    if shape.key is not None:
        # When all are in their places: a list of cells reads meaning into its Parameters' names.
        for name, adapted in made.items():
            adapted.drop(f"{prefix}.{name}", shape)
        shape.key.name = KEY_NAME
    return trained


def diffusers_weights(
    trained: Mapping[str, NDArray[np.float32]], scale: float
) -> dict[str, NDArray[np.float32]]:
    """Return LoRA arrays under the names diffusers reads, `scale` folded into the up matrices.

    The file has no place for alpha: readers take alpha = rank, so `up` carries alpha / rank.
    """
    return {
        name: np.ascontiguousarray(array * np.float32(scale) if ".lora_B." in name else array)
        for name, array in trained.items()
    }


def merge(
    cells: Mapping[str, nn.Cell], weights: Mapping[str, NDArray[np.float32]], factor: float
) -> int:
    """Add `factor` times each LoRA update to its weight, in place; return how many were changed.

    In place, since a compiled graph sees `Parameter.set_data` and nothing else.

    Args:
        cells: the modules by the first part of the LoRA's names: unet, text_encoder, ...
        weights: `<cell>.<module>.lora_A.weight` [rank, in] and `lora_B.weight` [out, rank].

    Raises:
        BadSpec: the LoRA has a module that the model lacks, or of another size.
    """
    count = 0
    for name in sorted(weights):
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        part, _, path = module.partition(".")
        # Names by structure: MindSpore changes Parameter.name whenever a cell is nested.
        parameters = dict(cells[part].parameters_and_names()) if part in cells else {}
        base = parameters.get(f"{path}.weight")
        delta = weights[f"{module}.lora_B.weight"] @ weights[name]  # [out, rank] @ [rank, in]
        if base is None or tuple(base.shape) != delta.shape:
            raise BadSpec(f"LoRA: module {module} of {delta.shape} does not fit the model")
        merged = base.astype(ms.float32).asnumpy() + np.float32(factor) * delta
        base.set_data(Tensor(merged).astype(base.dtype))
        count += 1
    if count == 0:
        raise BadSpec("LoRA: it has no module in diffusers' naming (...lora_A.weight)")
    return count


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of a LoRA file in diffusers' naming, fp32."""
    from safetensors.numpy import load_file

    return {name: array.astype(np.float32) for name, array in load_file(path).items()}
