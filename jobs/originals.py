"""Owns SDXL as one file in the naming of its authors: its parts' weights under diffusers' names.

Pure but for reading the file; must not know hubs, caches or runs. Which name becomes which is
mindone's own table (mindone.diffusers.loaders.single_file_utils).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.errors import BadSpec

Arrays = dict[str, NDArray[Any]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
"""What the names of each part begin with (Stability-AI/generative-models)."""
PARTS = {"unet": UNET, "vae": VAE, "text_encoder": FIRST, "text_encoder_2": SECOND}
V_PREDICTION = "v_pred"
"""Name of the empty array by which trainers mark a model that predicts velocities."""
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def read(path: Path) -> Arrays:
    """Return the floating-point arrays of a safetensors file, mapped; bf16 becomes fp32.

    Our own reading, since numpy, which safetensors would return, has no bf16.

    Raises:
        BadSpec: the file is none, or is cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("its header has no end")
            rows = json.loads(file.read(length))
        rows.pop("__metadata__", None)
        end = max((row["data_offsets"][1] for row in rows.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError(f"it has {path.stat().st_size} bytes, not {8 + length + end}")
        data = np.memmap(path, np.uint8, "r", 8 + length) if end else np.zeros(0, np.uint8)
        return {
            name: _array(data, row) for name, row in sorted(rows.items()) if row["dtype"] in _TYPES
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadSpec(
            f"model {path}: is no whole safetensors file ({error}); fetch it again"
        ) from error


def _array(data: NDArray[np.uint8], row: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = row["data_offsets"]
    found = data[begin:end].view(_TYPES[row["dtype"]]).reshape(row["shape"])
    if row["dtype"] == "BF16":  # the upper half of fp32
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


def parts(arrays: Arrays, configs: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Arrays]:
    """Return the arrays of each part of PARTS under the names of PyTorch's diffusers.

    Args:
        arrays: of a whole checkpoint.
        configs: the parts' configurations.
        name: what messages call the checkpoint.

    Raises:
        BadSpec: it lacks a part of SDXL; what it has instead is named.
    """
    from mindone.diffusers.loaders import single_file_utils as tables

    lacking = [part for part, start in PARTS.items() if not _below(arrays, start)]
    if lacking:
        there = sorted({key.split(".")[0] for key in arrays})
        raise BadSpec(
            f"model {name}: has no {' and no '.join(lacking)} of SDXL in its authors' naming "
            f"({UNET}...); its names begin with {', '.join(there[:6]) or 'nothing'}"
        )
    unet = tables.convert_ldm_unet_checkpoint(_below(arrays, UNET), dict(configs["unet"]))
    first = tables.convert_ldm_clip_checkpoint(_below(arrays, FIRST))
    return {
        "unet": _plain(unet),
        "vae": vae(_below(arrays, VAE), configs["vae"], name),
        # An index of the positions, which older files hold and no reader wants.
        "text_encoder": _plain({k: v for k, v in first.items() if not k.endswith("position_ids")}),
        "text_encoder_2": _second(_below(arrays, SECOND), configs["text_encoder_2"]),
    }


def vae(arrays: Arrays, config: Mapping[str, Any], name: str) -> Arrays:
    """Return a VAE's arrays under diffusers' names, whichever of both namings they have.

    Raises:
        BadSpec: it is no VAE.
    """
    from mindone.diffusers.loaders import single_file_utils as tables

    if any(key.startswith("encoder.down_blocks.") for key in arrays):
        return arrays
    if not any(key.removeprefix(VAE).startswith("encoder.down.") for key in arrays):
        raise BadSpec(f"vae {name}: has no encoder of a VAE (encoder.down...)")
    return _plain(tables.convert_ldm_vae_checkpoint(arrays, dict(config)))


def _second(arrays: Arrays, config: Mapping[str, Any]) -> Arrays:
    from mindone.diffusers.loaders import single_file_utils as tables

    # As a product from the left, where a linear module has it from the right. The table would
    # take the width of one of q, k and v from it, which is the hidden size all the same.
    projection = arrays.pop(f"{SECOND}text_projection", None)
    width = SimpleNamespace(config=SimpleNamespace(projection_dim=config["hidden_size"]))
    found = _plain(tables.convert_open_clip_checkpoint(width, arrays, prefix=SECOND))
    if projection is not None:
        found["text_projection.weight"] = np.ascontiguousarray(projection.T)
    return found


def _below(arrays: Arrays, start: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith(start)}


def _plain(found: Mapping[str, Any]) -> Arrays:
    """Return numpy arrays: some of the table's rows make MindSpore's Parameters."""
    return {
        name: np.ascontiguousarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
        for name, value in found.items()
    }
