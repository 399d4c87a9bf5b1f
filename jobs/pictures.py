"""Owns pictures on their way out: pixels to PNG bytes, with texts. Must not import MindSpore."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def to_pixels(decoded: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return [H, W, 3] bytes for a decoded picture [3, H, W] in -1..1, clipped and rounded."""
    scaled = np.clip(decoded.astype(np.float32) * 0.5 + 0.5, 0.0, 1.0) * 255.0
    pixels: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def fault(decoded: NDArray[np.float32]) -> str:
    """Return what is wrong with a decoded picture [3, H, W]; empty if nothing is."""
    if not np.isfinite(decoded).all():
        return "not a number; choose a wider precision"
    if not to_pixels(decoded).any():
        return "black all over; choose a wider precision"
    return ""


def to_png(pixels: NDArray[np.uint8], texts: Mapping[str, str] | None = None) -> bytes:
    """Return PNG bytes of [H, W, 3] with text chunks; the same for the same pixels and texts."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in (texts or {}).items():
        if text.isascii():
            chunks.add_text(key, text)
        else:
            chunks.add_itxt(key, text)  # UTF-8, which a plain text chunk is not
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(buffer, "PNG", compress_level=6, pnginfo=chunks)
    return buffer.getvalue()
