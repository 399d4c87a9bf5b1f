"""Owns small copies of pictures: how they are made, several at once. Must not know of runs.

Pillow reads and writes outside of Python's lock, so threads are enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.stores import PART

SUFFIX = ".jpg"
"""JPEG: a tenth more bytes than WebP, for a third of the time to show and a fifteenth to make."""


class Unreadable(Exception):
    """The file is no picture that Pillow reads."""


def small(source: Path, side: int, quality: int) -> bytes:
    """Return a picture as JPEG whose longer side has at most `side` pixels, on white if need be.

    Args:
        source: the file.
        side: pixels.
        quality: JPEG's, 1 to 95.

    Raises:
        Unreadable: it is no picture, or too large to be one.
    """
    import io

    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                shown = picture.convert("RGBA")
                picture = Image.new("RGB", shown.size, "white")
                picture.paste(shown, mask=shown)
            picture = picture.convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            return buffer.getvalue()
    # Pillow tells of broken files in all of these ways.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"{source}: {error}") from error


class Maker:
    """Makes thumbnails beside other work; a context manager, which waits for all of them.

    Args:
        side: pixels of the longer side, at most.
        quality: JPEG's, 1 to 95.
    """

    def __init__(self, side: int, quality: int) -> None:
        self._side, self._quality = side, quality
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="thumbnail")
        self._orders: dict[Path, tuple[Path, Future[None]]] = {}
        self._lock = threading.Lock()

    def order(self, source: Path, target: Path) -> None:
        """Have a thumbnail made, from any thread; one that is there already stays."""
        with self._lock:  # equal pictures share one
            if target not in self._orders:
                self._orders[target] = (source, self._pool.submit(self._make, source, target))

    def unreadable(self) -> Iterable[Path]:
        """Wait; yield the files that are no pictures.

        Raises:
            OSError: a thumbnail could not be written.
        """
        for source, made in self._orders.values():
            try:
                made.result()
            except Unreadable:
                yield source

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # After Ctrl-C, or a store that failed, what has not begun does not begin.
        self._pool.shutdown(cancel_futures=kind is not None)

    def _make(self, source: Path, target: Path) -> None:
        if target.exists():
            return
        data = small(source, self._side, self._quality)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{PART}{target.name}")
        draft.write_bytes(data)
        draft.replace(target)
