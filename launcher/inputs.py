"""Owns what a submission reads besides its spec: prompts, a picture's recipe, local paths.

Must not decide where a run goes.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobs import layout
from jobs.access import Access
from jobs.errors import BadData, BadSpec
from jobs.prompts import BadLines, form_of, parse, selection, to_json_line
from jobs.specs import INLINE_PROMPT_BYTES, SHIPPED_DATA, TINY, InferSpec, PromptFile, PromptRow
from jobs.stores import FileStore, Store
from launcher import storage
from launcher.backends.localrun import make_folders
from launcher.errors import Misconfigured, NotFound, Usage
from launcher.sizes import Shape

STDIN = "-"
LARGEST_PROMPT_FILE = 64 * 1024 * 1024
"""Bytes. Some 500,000 prompts; past that it is more likely that another file was meant."""
INDEX = "model_index.json"
"""What a diffusers pipeline folder has."""
PLACES = {
    "model": "a pipeline folder, a .safetensors file",
    "model_config_from": "a pipeline folder",
    "vae": "a VAE's folder, a .safetensors file",
    "data": "a folder of pictures, a parquet file",
}
"""Keys of a spec that name files or folders, and what they want."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a submission puts into the run's store, unless it is there."""

    key: str
    """Made of its content."""
    data: bytes | Path
    """The bytes, or a file of this machine."""
    what: str
    """What messages call it."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run: in the spec, or, when they are too long for it, by way of the store."""

    value: tuple[PromptRow, ...] | PromptFile
    payload: bytes = b""
    """What has to be in the store under `value.key`; empty when `value` holds the rows."""
    lines: tuple[tuple[int, int | None], ...] = ()
    """Line and number of images, where it says one, of each prompt."""
    shapes: Mapping[Shape, int] = field(default_factory=dict)
    """How many prompts ask for which pictures."""

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """What has to be in the store."""
        if not isinstance(self.value, PromptFile):
            return ()
        return (Upload(self.value.key, self.payload, "prompts"),)


def read_prompts(source: str) -> Prompts:
    """Return the prompts of a file; `-` is standard input.

    Raises:
        Usage: the name is empty.
        NotFound: there is no such file.
        Misconfigured: it cannot be read, or is no prompt file; every bad line is named.
    """
    if not source:
        raise Usage("--prompts '': is empty", "--prompts FILE, or - for standard input")
    name = "standard input" if source == STDIN else source
    hint = "a prompt file is UTF-8 text with one prompt a line, or .jsonl with one object a line"
    try:
        if source == STDIN:
            data = sys.stdin.buffer.read(LARGEST_PROMPT_FILE + 1)
        else:
            with Path(source).expanduser().open("rb") as handle:
                data = handle.read(LARGEST_PROMPT_FILE + 1)
        if len(data) > LARGEST_PROMPT_FILE:
            raise Misconfigured(f"{name}: is larger than {LARGEST_PROMPT_FILE >> 20} MiB", hint)
        form = form_of("" if source == STDIN else name, data)
        return _packed(parse(data, name, form))
    except (FileNotFoundError, RuntimeError) as error:  # the latter: no such ~user
        raise NotFound(
            f"{name}: no such file", "--prompts wants a file, or - for standard input"
        ) from error
    except OSError as error:
        raise Misconfigured(f"{name}: cannot be read: {error.strerror}", hint) from error
    except BadLines as error:
        raise Misconfigured(f"{name}: {error.count:,} bad lines", hint, error.rows) from error
    except BadData as error:
        raise Misconfigured(str(error), hint) from error


def _packed(rows: Iterator[PromptRow]) -> Prompts:
    """Return the prompts as they travel; many rows are never there at once as objects."""
    small: list[PromptRow] = []
    payload = bytearray()
    lines: list[tuple[int, int | None]] = []
    shapes: Counter[Shape] = Counter()
    inline = True
    for row in rows:
        payload += to_json_line(row)
        lines.append((row.line, row.images))
        shapes[row.width, row.height, row.images] += 1
        # The kubelet's escape of `$` takes six bytes (jobs.specs.to_json).
        inline = inline and len(payload) + 5 * payload.count(b"$") <= INLINE_PROMPT_BYTES
        if inline:
            small.append(row)
        else:
            small.clear()
    if inline:
        return Prompts(tuple(small), lines=tuple(lines), shapes=shapes)
    digest = hashlib.sha256(payload).hexdigest()
    file = PromptFile(key=layout.prompts_key(digest), sha256=digest)
    return Prompts(file, bytes(payload), tuple(lines), shapes)


def check_only(spec: InferSpec, prompts: Prompts | None) -> None:
    """Make sure that what is to be painted is in the prompt file.

    Raises:
        Usage: --only has another form, or names lines without a prompt.
    """
    if spec.only is None:
        return
    lines: tuple[tuple[int, int | None], ...] = prompts.lines if prompts else ()
    if not lines and isinstance(spec.prompts, tuple):  # of a --spec file
        lines = tuple((row.line, row.images) for row in spec.prompts)
    hint = "--only 17,40-42 are lines of the prompt file, and 17.0 is the first picture of line 17"
    try:
        missing = selection(spec.only).missing(
            (line, spec.images if images is None else images) for line, images in lines
        )
    except BadSpec as error:
        raise Usage(f"--{error}", hint) from error
    if missing and lines:
        raise Usage(f"--only {','.join(missing[:20])}: the prompt file has no such picture", hint)


def read_recipe(path: Path) -> dict[str, object]:
    """Return the keys of the spec that paints a picture again.

    Raises:
        NotFound: there is no such file.
        Misconfigured: it is no picture of an inference run.
    """
    import warnings

    from PIL import Image

    from jobs.recipes import spec_of

    hint = "--like wants a PNG that an inference run has painted, unchanged"
    try:
        with warnings.catch_warnings():
            # No run paints 90 million pixels.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path.expanduser())
        with picture:
            texts = {str(key): value for key, value in picture.info.items()}
            return spec_of(texts, str(path))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file", hint) from error
    except BadData as error:
        raise Misconfigured(str(error), hint) from error
    except (
        Image.DecompressionBombError, Image.DecompressionBombWarning,
        OSError, ValueError, SyntaxError, RuntimeError,  # RuntimeError: no such ~user
    ) as error:  # fmt: skip
        raise Misconfigured(f"{path}: is no picture that can be read", hint) from error


@contextmanager
def in_store(
    store: Store, uploads: Sequence[Upload], keep: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Put files into a store for a submission; one that fails takes them back.

    Args:
        store: the run's.
        uploads: what has to be there; mostly nothing.
        keep: failures that leave them there, since the submission may have got through.

    Raises:
        Forbidden, Unreachable, Misconfigured: the store cannot be written.
    """
    with ExitStack() as undo:
        for upload in uploads:
            with storage.asking(store):
                if not present(store, upload.key):
                    if isinstance(store, FileStore):
                        make_folders((store.root / upload.key).parent, undo)
                    _write(store, upload)
                    undo.callback(_take_back, store, upload.key)
        try:
            yield
        except keep:
            undo.pop_all()
            raise
        undo.pop_all()


def _write(store: Store, upload: Upload) -> None:
    if isinstance(upload.data, bytes):
        store.write(upload.key, upload.data)
    else:
        store.put(upload.key, upload.data)


def _take_back(store: Store, key: str) -> None:
    with suppress(OSError):  # what made the submission fail is worth more words
        store.delete(key)


def present(store: Store, key: str) -> bool:
    """Return whether the store holds a key already."""
    return any(entry.key == key for entry in store.list(key))


def place(key: str, value: str, origin: str, how: Access) -> str:
    """Return a path that exists here as an absolute one; a hub id or s3:// address as it is.

    The supervisor runs elsewhere, and a resumed run may be submitted from another folder.

    Args:
        key: one of PLACES.
        value: what it is set to.
        origin: where that comes from.
        how: how this machine speaks to object stores.

    Raises:
        NotFound: it is neither, or nothing lies at the address.
        Misconfigured: it is here, and plainly something else.
        Forbidden, Unreachable, Misconfigured: the store cannot be asked.
    """
    ships = SHIPPED_DATA if key == "data" else (TINY,)
    if value in ships:
        return value
    if storage.remote(value):
        store = storage.opened(value, how)
        with storage.asking(store):
            if not _holds(store, value, how):
                raise NotFound(
                    f"{key} {value!r} (from {origin}): there is nothing in the store",
                    f"launcher push DIR {value} puts a folder there",
                )
        return value
    with suppress(RuntimeError, ValueError, OSError):  # no such ~user; no path at all
        path = Path(value).expanduser()
        if path.exists():
            _check_place(key, path, f"{key} {value!r} (from {origin})")
            return str(path.absolute())
    # The rule by which the job tells a hub id (jobs.data, jobs.pipelines).
    url = "://" in value
    file = key != "data" and not url and value.count("/") > 1 and value.endswith(".safetensors")
    if value.startswith(("/", ".", "~")) or (value.count("/") != 1 and not file):
        raise NotFound(
            f"{key} {value!r} (from {origin}): no such file or folder",
            f"{key} wants {PLACES[key]}, s3://bucket/prefix, a hub id (owner/name)"
            f" or {' or '.join(ships)}",
        )
    return value


def _check_place(key: str, path: Path, what: str) -> None:
    """Refuse here what the job would refuse a minute later (jobs.pipelines)."""
    hint = f"{key} wants {PLACES[key]}"
    if key in ("model", "model_config_from") and path.is_dir():
        if not (path / INDEX).is_file():
            raise Misconfigured(f"{what}: no {INDEX} in it", hint)
    elif key != "data" and path.is_file() and path.suffix != ".safetensors":
        raise Misconfigured(f"{what}: is no .safetensors file", hint)


def _holds(store: Store, url: str, how: Access) -> bool:
    """Say whether anything lies below an address, or an object of that very name."""
    if next(iter(store.list("")), None) is not None:
        return True
    parent, _, name = url.rstrip("/").rpartition("/")
    if parent.count("/") < 2:
        return False  # a whole bucket
    return any(entry.key == name for entry in storage.opened(parent, how).list(name))
