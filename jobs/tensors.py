"""Owns the safetensors format: a file's names, shapes and metadata, and its arrays.

Our own reading, since the launcher looks at headers without numpy, and since numpy, which the
safetensors library would return, has no bf16. Must not know what the arrays are for.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import BadSpec

if TYPE_CHECKING:  # the launcher's machine may have none
    import numpy as np
    from numpy.typing import NDArray

Shape = tuple[int, ...]

_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the format."""
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Floating-point types as numpy calls them; bf16 as the bits it is."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a file says of the rest."""

    shapes: Mapping[str, Shape]
    """Of every array of floating-point numbers, by name, in order of name."""
    metadata: Mapping[str, str]
    places: Mapping[str, tuple[str, int]]
    """Type, and first byte behind the header, of those arrays."""
    size: int
    """Bytes of the header itself."""


def header(path: Path, what: str) -> Header:
    """Return a file's header; the arrays are not read.

    Args:
        path: the file.
        what: what messages call it.

    Raises:
        BadSpec: it is no safetensors file, or is cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("its header has no end")
            rows: dict[str, Any] = json.loads(file.read(length))
        metadata = dict(rows.pop("__metadata__", None) or {})
        end = max((row["data_offsets"][1] for row in rows.values()), default=0)
        found = path.stat().st_size
        if found != 8 + length + end:
            raise ValueError(f"it has {found} bytes, not {8 + length + end}")
        shapes, places = {}, {}
        for name, row in sorted(rows.items()):
            if row["dtype"] not in _TYPES:
                continue
            shape, (begin, last) = tuple(row["shape"]), row["data_offsets"]
            if last - begin != math.prod(shape) * _BYTES[row["dtype"]] or begin < 0:
                raise ValueError(f"{name} has {last - begin} bytes")
            shapes[name], places[name] = shape, (row["dtype"], begin)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadSpec(f"{what}: is no whole safetensors file ({error})") from error
    return Header(shapes, metadata, places, 8 + length)


def arrays(path: Path, what: str) -> dict[str, NDArray[np.floating[Any]]]:
    """Return the floating-point arrays of a file, mapped, in order of name; bf16 becomes fp32.

    Raises:
        BadSpec: it is no safetensors file, or is cut short.
    """
    import numpy as np

    head = header(path, what)
    data = np.memmap(path, np.uint8, "r") if head.shapes else np.zeros(0, np.uint8)
    found = {}
    for name, shape in head.shapes.items():
        kind, begin = head.places[name]
        start = head.size + begin
        part = data[start : start + math.prod(shape) * _BYTES[kind]]
        array = part.view(_TYPES[kind]).reshape(shape)
        if kind == "BF16":  # the upper half of fp32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        found[name] = array
    return found
