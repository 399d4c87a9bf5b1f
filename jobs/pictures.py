"""Owns pictures on their way out: pixels to PNG bytes. Must not import MindSpore."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray


def to_pixels(decoded: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return [H, W, 3] bytes for a decoded picture [3, H, W] in -1..1, clipped and rounded."""
    scaled = np.clip(decoded.astype(np.float32) * 0.5 + 0.5, 0.0, 1.0) * 255.0
    pixels: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return PNG bytes of [H, W, 3]; the same for the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
