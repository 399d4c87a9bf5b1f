"""Owns low-rank adaptation: inject into a UNet, write diffusers' arrays, merge a file in place.

Must not train or sample. A module `W` of [out, in] gets `W + alpha / rank * B @ A` with A of
[rank, in] and B of [out, rank] (Hu et al. 2021, arXiv 2106.09685, section 4.1); a convolution's are
one of its own kernel and one of 1 x 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from jobs import adapters, tensors
from jobs.dropout import KEY_NAME, Dropout
from jobs.errors import BadSpec

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The text encoders' attention projections, as diffusers' SDXL LoRA script trains them."""

ADAPTED = nn.Dense | nn.Conv2d
"""Kinds of modules that an update can be trained for, or merged into."""

Weights = Mapping[str, NDArray[Any]]
"""Arrays of a LoRA, by key."""


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
        outputs, inputs, *kernel = base.weight.shape
        # Named by the module, not by the order of creation, so that each process starts equal.
        rng = np.random.Generator(np.random.Philox(key=[shape.seed, zlib.crc32(name.encode())]))
        down = rng.standard_normal((rank, inputs, *kernel)) / (rank * math.sqrt(math.prod(kernel)))
        up = np.zeros((outputs, rank, *(1 for _ in kernel)), np.float32)
        self.down = Parameter(Tensor(down.astype(np.float32)), name=f"{name}.lora_A.weight")
        self.up = Parameter(Tensor(up), name=f"{name}.lora_B.weight")
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


class LoraConv(LoraDense):
    """The same of a Conv2d: `down` is a convolution of its kernel to `rank` channels, `up` 1 x 1.

    As peft does it, and kohya under the name of LoCon.
    """

    def __init__(self, base: nn.Cell, name: str, shape: Shape) -> None:
        super().__init__(base, name, shape)
        self.to_rank = ops.Conv2D(
            shape.rank, base.kernel_size, pad_mode=base.pad_mode, pad=base.padding,
            stride=base.stride, dilation=base.dilation,
        )  # fmt: skip
        self.to_out = ops.Conv2D(base.weight.shape[0], 1)

    def construct(self, x: Tensor) -> Tensor:
        """Return [B, out, H', W'] for [B, in, H, W]."""
        seen = x
        if self.dropped:  # features come last there
            seen = self.dropout(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        down = self.to_rank(seen, self.down.astype(x.dtype))  # -> [B, rank, H', W']
        return self.base(x) + self.to_out(down, self.up.astype(x.dtype)) * self.scale


def inject(
    cell: nn.Cell, prefix: str, targets: Iterable[str], shape: Shape
) -> dict[str, Parameter]:
    """Replace target modules of `cell` by `LoraDense` and `LoraConv`; return the new parameters.

    Everything else in `cell` is frozen. The names are `<prefix>.<module>.lora_A.weight` and
    `lora_B.weight`, in order of module.

    Raises:
        BadSpec: a target is the end of no linear module's name, and of no convolution's.
    """
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
    wanted = tuple(targets)
    found = {
        name: child
        for name, child in cell.cells_and_names()
        if isinstance(child, ADAPTED) and f".{name}".endswith(tuple(f".{t}" for t in wanted))
    }
    if lost := [t for t in wanted if not any(f".{name}".endswith(f".{t}") for name in found)]:
        leaves = {
            name.rpartition(".")[2]
            for name, child in cell.cells_and_names()
            if isinstance(child, ADAPTED)
        }
        raise BadSpec(
            f"lora_targets: no module of the {prefix} ends in {', '.join(map(repr, lost))}; "
            f"there are {', '.join(sorted(n for n in leaves if not n.isdigit()))}"
        )
    trained: dict[str, Parameter] = {}
    made: dict[str, LoraDense] = {}
    for name in sorted(found):
        parent_name, _, leaf = name.rpartition(".")
        parent = cell
        for part in filter(None, parent_name.split(".")):
            parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
        kind = LoraConv if isinstance(found[name], nn.Conv2d) else LoraDense
        adapted = made[name] = kind(found[name], f"{prefix}.{name}", shape)
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


def modules(cells: Mapping[str, nn.Cell]) -> dict[str, Parameter]:
    """Return the weight of each linear module and convolution, by `<cell>.<module>`."""
    # Names by structure: MindSpore changes Parameter.name whenever a cell is nested.
    return {
        f"{part}.{name}": child.weight
        for part, cell in cells.items()
        for name, child in cell.cells_and_names()
        if isinstance(child, ADAPTED)
    }


def merge(
    cells: Mapping[str, nn.Cell], weights: Weights, factor: float, what: str = "lora"
) -> dict[str, NDArray[np.float32]]:
    """Add `factor` times each LoRA update to its weight, in place; return what they were.

    In place, since a compiled graph sees `Parameter.set_data` and nothing else.

    Args:
        cells: the modules by the first part of the LoRA's names: unet, text_encoder, ...
        weights: arrays of a LoRA in diffusers' or kohya's naming (see adapters).
        factor: of all updates.
        what: what messages call the LoRA.

    Raises:
        BadSpec: the LoRA has a module that the model lacks, or of another size, or numbers that are
            not finite; nothing is changed.
    """
    for name, array in weights.items():
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise BadSpec(f"{what}: {name} holds numbers that are not finite")
    parameters = modules(cells)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    keys = {name: array.shape for name, array in weights.items()}
    metadata = weights.metadata if isinstance(weights, File) else {}
    pristine: dict[str, NDArray[np.float32]] = {}
    for update in adapters.updates(keys, shapes, what, metadata):
        base = parameters[update.module]
        before = base.astype(ms.float32).asnumpy()
        delta = np.float32(factor) * _delta(weights, update).reshape(before.shape)
        pristine[update.module] = before
        base.set_data(Tensor(before + delta).astype(base.dtype))
    return pristine


def restore(cells: Mapping[str, nn.Cell], pristine: Mapping[str, NDArray[np.float32]]) -> None:
    """Put back, in place, what `merge` returned."""
    parameters = modules(cells)
    for name, value in pristine.items():
        parameters[name].set_data(Tensor(value).astype(parameters[name].dtype))


def _delta(weights: Weights, update: adapters.Update) -> NDArray[np.float32]:
    """Return alpha / rank * up @ down, [out, in * h * w]."""
    up = np.asarray(weights[update.up], np.float32).reshape(-1, update.rank)
    down = np.asarray(weights[update.down], np.float32).reshape(update.rank, -1)
    alpha = update.alpha
    number = float(weights[alpha].reshape(-1)[0]) if isinstance(alpha, str) else alpha
    # Folded into `up`, as diffusers_weights does: both namings of one LoRA give the same bits.
    scale = np.float32(1.0 if number is None else number / update.rank)
    return (up * scale) @ down


class File(dict[str, NDArray[Any]]):
    """The arrays of a LoRA file, and its metadata."""

    metadata: Mapping[str, str] = MappingProxyType({})


def read(path: Path, what: str = "lora") -> File:
    """Return the arrays of a LoRA file, in whichever naming.

    Raises:
        BadSpec: it is no safetensors file, or is cut short.
    """
    found = File(tensors.arrays(path, what))
    found.metadata = tensors.header(path, what).metadata
    return found
