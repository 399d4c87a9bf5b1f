"""Owns captioned pictures: find them, check them, read them. Must not import MindSpore."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import pixels
from jobs.digests import Digests
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.pixels import CENTRE, Picture, Place
from jobs.specs import SHIPPED_DATA, TrainSpec

log = logging.getLogger("jobs.data")

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif",
    ".ppm", ".tga",
)  # fmt: skip
"""Of the pictures of a folder; a row of its metadata may name a file of any."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SUFFIXES_OF_METADATA = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Captioned:
    """Captions in memory, pictures where they are."""

    captions: tuple[tuple[str, ...], ...]
    """Of each picture, one or more: a sample draws one of them."""
    rows: Sequence[Any]
    column: str

    def views(
        self, index: int, size: int, places: Sequence[Place] = (CENTRE,), *, flip: bool = False
    ) -> list[Picture]:
        """Return the crops of a picture; see pixels.views.

        Raises:
            BadData: it is not a picture; its path or row is named.
        """
        from PIL import Image

        name, raw = self._source(index)
        try:
            image = pixels.read(io.BytesIO(raw) if raw else Path(name))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).partition(" '")[0] if raw is None else "not a picture"
            raise BadData(
                f"{name}: cannot be read as a picture ({reason}); replace or remove it"
            ) from error
        return pixels.views(image, size, places, flip=flip)

    def digest(self, index: int, digests: Digests) -> str:
        """Return the SHA-256 of a picture's bytes, hex.

        Raises:
            BadData: its file is gone.
        """
        name, raw = self._source(index)
        try:
            return hashlib.sha256(raw).hexdigest() if raw else digests.of(Path(name))
        except OSError as error:
            raise BadData(f"{name}: cannot be read ({error.strerror})") from error

    def name(self, index: int) -> str:
        """Return the path of a picture, or the number of its row."""
        return self._source(index)[0]

    def _source(self, index: int) -> tuple[str, bytes | None]:
        cell = self.rows[index][self.column]
        return str(cell.get("path") or f"row {index}"), cell.get("bytes")


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
    captions = tuple(_variants(cell) for cell in table[spec.caption_column])
    if len(captions) == 0:
        raise BadData(f"data {spec.data}: there is no picture in it")
    for index, variants in enumerate(captions):
        if not variants or not all(caption.strip() for caption in variants):
            name = table[index][spec.image_column].get("path") or f"row {index}"
            raise BadData(f"{name}: has no caption in column {spec.caption_column!r}")
    return Captioned(captions, table, spec.image_column)


def _variants(cell: Any) -> tuple[str, ...]:
    """Return the captions of a cell: a text, or several in a list or array; none if it is neither.

    As the script that is replaced takes them (mindone's and diffusers'
    train_text_to_image_sdxl.py, `tokenize_captions`).
    """
    if isinstance(cell, str):
        return (cell,)
    rows = cell.tolist() if hasattr(cell, "tolist") else cell
    texts = isinstance(rows, list | tuple) and all(isinstance(row, str) for row in rows)
    return tuple(rows) if texts else ()


def _table(spec: TrainSpec, env: Environment) -> Any:
    import datasets

    datasets.disable_progress_bars()
    cache = str(env.work / "datasets")
    if spec.data in SHIPPED_DATA:
        return _folder(_drawn(spec.data, env), spec)
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


def _drawn(name: str, env: Environment) -> Path:
    """Return the folder of drawings that ship: each worker draws them, and the first one wins."""
    from jobs.tiny import folders

    folder = env.work / "drawings" / name
    if not folder.is_dir():
        folders.write(folder, folders.styled(folders.STYLES[name]))
    return folder


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

    files = {p for p in folder.rglob("*") if p.is_file()}
    found = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    captions = _from_metadata(folder, found, spec) if found else {}
    pictures = sorted({p for p in files if p.suffix.lower() in SUFFIXES} | captions.keys())
    if not pictures:
        raise BadData(f"data {spec.data}: no picture in it ({', '.join(SUFFIXES)})")
    _tell_others(spec, files - set(pictures), pictures)
    captions = captions if found else {p: _beside(p, spec) for p in pictures}
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


def _tell_others(spec: TrainSpec, others: set[Path], pictures: Sequence[Path]) -> None:
    """Name what lies in the folder and is not trained on.

    Raises:
        BadData: a file has a caption beside it and is no picture by its suffix.
    """
    known = {p.with_suffix("") for p in pictures}
    texts = {p.with_suffix("") for p in others if p.suffix == ".txt"} - known
    shown = {p for p in others if p.suffix not in (".txt", *_SUFFIXES_OF_METADATA)}
    if captioned := sorted(p for p in shown if p.with_suffix("") in texts):
        raise BadData(
            f"{captioned[0]}: has a caption and is none of {', '.join(SUFFIXES)}; convert it, or "
            f"name it in a metadata.jsonl if Pillow reads it"
        )
    left = sorted(p for p in (*shown, *(t.with_suffix(".txt") for t in texts)) if p.name[0] != ".")
    if left:
        log.info("data=ignored files=%d, as %s", len(left), left[0].relative_to(spec.data))


def _beside(picture: Path, spec: TrainSpec) -> list[str]:
    """Return the lines of the text beside a picture: each is a caption, blank ones are not."""
    text = picture.with_suffix(".txt")
    try:
        lines = text.read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    except FileNotFoundError:
        raise BadData(
            f"{picture}: has no caption; put a metadata.jsonl (file_name, {spec.caption_column}) "
            f"into the folder or {text.name} beside the picture"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise BadData(f"{text}: cannot be read as UTF-8 text") from error


def _from_metadata(folder: Path, metadata: Path, spec: TrainSpec) -> dict[Path, list[str]]:
    """Return the captions of each file that is named; several rows of one file are several."""
    import pandas as pd

    try:
        if metadata.suffix == ".jsonl":
            table = pd.read_json(metadata, lines=True, dtype=False, encoding="utf-8-sig")
        elif metadata.suffix == ".csv":
            table = pd.read_csv(metadata, dtype=str, keep_default_na=False, index_col=False)
        else:
            table = pd.read_parquet(metadata)
    except (ValueError, OSError) as error:
        raise BadData(f"{metadata}: cannot be read ({str(error).splitlines()[0]})") from error
    for column in ("file_name", spec.caption_column):
        if column not in table.columns:
            raise BadData(
                f"{metadata}: no column {column!r}; it has {', '.join(map(str, table.columns))}; "
                + ("name each file in it" if column == "file_name" else "set caption_column")
            )
    captions: dict[Path, list[str]] = {}
    rows = zip(table["file_name"], table[spec.caption_column], strict=True)
    for number, (name, cell) in enumerate(rows, 1):
        if not isinstance(name, str) or not name.strip():
            raise BadData(f"{metadata}: row {number} names no file in file_name")
        path = folder / name
        if path not in captions and not _is_inside(path, folder):
            raise BadData(f"{metadata}: row {number} names {name:.80}, which is not in the folder")
        captions.setdefault(path, []).extend(_variants(cell) or ("",))
    return captions


def _is_inside(path: Path, folder: Path) -> bool:
    """Say whether a file is there, below the folder: elsewhere a pod has other files."""
    try:
        return path.is_file() and ".." not in path.relative_to(folder).parts
    except (OSError, ValueError):  # longer than a name may be; an absolute path
        return False
