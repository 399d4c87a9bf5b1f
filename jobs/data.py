"""Owns captioned pictures: find them, check them, read them. Must not import MindSpore."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.specs import TrainSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as the trainer needs it."""

    pixels: NDArray[np.float32]
    """[3, size, size] in -1..1."""
    time_ids: NDArray[np.float32]
    """Original height and width, top and left of the crop, target height and width: [6]
    (Podell et al. 2023, arXiv 2307.01952, section 2.2)."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """Captions in memory, pictures where they are."""

    captions: tuple[str, ...]
    rows: Sequence[Any]
    column: str

    def picture(self, index: int, size: int) -> Picture:
        """Return a picture, its shorter side scaled to `size` and its centre cut out.

        Raises:
            BadData: it is not a picture; its path or row is named.
        """
        from PIL import Image

        cell = self.rows[index][self.column]
        name = str(cell.get("path") or f"row {index}")
        try:
            raw = cell.get("bytes")
            source = io.BytesIO(raw) if raw else Path(name)
            with Image.open(source) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).partition(" '")[0] if raw is None else "not a picture"
            raise BadData(
                f"{name}: cannot be read as a picture ({reason}); replace or remove it"
            ) from error
        width, height = image.size
        scale = size / min(width, height)
        # The scaled size first, then its centre: cut out before it is scaled, since a picture of
        # 1 x 20,000 pixels scaled as a whole would not fit any memory.
        left, top = ((max(size, round(side * scale)) - size) // 2 for side in (width, height))
        box = (left / scale, top / scale, (left + size) / scale, (top + size) / scale)
        box = (*box[:2], min(box[2], width), min(box[3], height))
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(
            1
        )
        ids = np.asarray([height, width, top, left, size, size], np.float32)
        return Picture(np.ascontiguousarray(pixels), ids)


def load(spec: TrainSpec, env: Environment) -> Captioned:
    """Return the captioned pictures of `spec.data`, all captions checked, no picture read yet.

    Raises:
        BadSpec: there is no such folder, file or column.
        BadData: no pictures, or a picture without caption; its path is named.
        Unavailable: the hub cannot be reached.
    """
    table = _table(spec, env)
    for column in (spec.image_column, spec.caption_column):
        if column not in table.column_names:
            raise BadData(
                f"data {spec.data}: no column {column!r}; it has {', '.join(table.column_names)}; "
                f"set image_column and caption_column"
            )
    import datasets

    table = table.cast_column(spec.image_column, datasets.Image(decode=False))
    captions = table[spec.caption_column]
    if len(captions) == 0:
        raise BadData(f"data {spec.data}: there is no picture in it")
    for index, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            name = table[index][spec.image_column].get("path") or f"row {index}"
            raise BadData(f"{name}: has no caption in column {spec.caption_column!r}")
    return Captioned(tuple(captions), table, spec.image_column)


def _table(spec: TrainSpec, env: Environment) -> Any:
    import datasets

    datasets.disable_progress_bars()
    cache = str(env.work / "datasets")
    if spec.data == "tiny":
        from jobs.tiny import drawings

        folder = env.work / "tiny-data"
        if not folder.is_dir():
            # Each worker draws its own and renames it; the first one wins.
            part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
            drawings.write_folder(part)
            with contextlib.suppress(OSError):
                part.rename(folder)
        return _folder(folder, spec)
    path = Path(spec.data)
    if path.is_dir():
        parquet = sorted(str(p) for p in path.glob("*.parquet"))
        if parquet and not (path / "metadata.parquet").exists():
            return _parquet(parquet, spec, cache)
        return _folder(path, spec)
    if path.is_file():
        if path.suffix != ".parquet":
            raise BadData(f"data {spec.data}: a single file must be parquet; or name a folder")
        return _parquet([str(path)], spec, cache)
    if path.is_absolute() or spec.data.startswith(".") or spec.data.count("/") != 1:
        raise BadSpec(f"data {spec.data}: no such file or folder, and not a hub id (owner/name)")
    try:
        return datasets.load_dataset(
            spec.data, revision=spec.data_revision, split="train", cache_dir=cache
        )
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise Unavailable(
            f"data {spec.data}: the hub gave nothing ({reason}); name a folder"
        ) from error


def _parquet(files: list[str], spec: TrainSpec, cache: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0][:200]
        raise BadData(f"data {spec.data}: not a parquet data set ({reason})") from error


def _folder(folder: Path, spec: TrainSpec) -> Any:
    """Return the table of an image folder: metadata file, or a text file beside each picture."""
    import datasets

    pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not pictures:
        raise BadData(f"data {spec.data}: no picture in it ({', '.join(SUFFIXES)})")
    found = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    captions = (
        _from_metadata(folder, found, spec) if found else {p: _beside(p, spec) for p in pictures}
    )
    missing = [path for path in pictures if path not in captions]
    if missing:
        raise BadData(
            f"{missing[0]}: has no row in {found}; add one (file_name, {spec.caption_column})"
        )
    columns = {
        spec.image_column: [str(p) for p in pictures],
        spec.caption_column: [captions[p] for p in pictures],
    }
    return datasets.Dataset.from_dict(columns)


def _beside(picture: Path, spec: TrainSpec) -> str:
    text = picture.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise BadData(
            f"{picture}: has no caption; put a metadata.jsonl (file_name, {spec.caption_column}) "
            f"into the folder or {text.name} beside the picture"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise BadData(f"{text}: cannot be read as UTF-8 text") from error


def _from_metadata(folder: Path, metadata: Path, spec: TrainSpec) -> dict[Path, Any]:
    import pandas as pd

    try:
        if metadata.suffix == ".jsonl":
            table = pd.read_json(metadata, lines=True, dtype=False)
        elif metadata.suffix == ".csv":
            table = pd.read_csv(metadata, dtype=str, keep_default_na=False)
        else:
            table = pd.read_parquet(metadata)
    except (ValueError, OSError) as error:
        raise BadData(f"{metadata}: cannot be read ({str(error).splitlines()[0]})") from error
    for column in ("file_name", spec.caption_column):
        if column not in table.columns:
            raise BadData(
                f"{metadata}: no column {column!r}; it has {', '.join(map(str, table.columns))}"
            )
    pairs = zip(table["file_name"], table[spec.caption_column], strict=True)
    captions = {folder / str(name): caption for name, caption in pairs}
    for path in captions:
        if not path.is_file():
            raise BadData(f"{metadata}: names {path.name}, which is not in the folder")
    return captions
