"""Owns the cache of what frozen parts say of pictures and captions: shards in the store, mapped.

    <store>/cache/latents/<content key>/shard.safetensors, MANIFEST.json, COMMITTED

A shard holds the rows of SHARD samples in a row. Its key hashes all that its numbers depend on, so
it may be trusted or made anew, and a run computes the same from either. Must not compute
embeddings (see latents) or know MindSpore.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import commits, layout
from jobs.environment import Environment
from jobs.errors import BadData
from jobs.gang import Gang
from jobs.specs import Precision
from jobs.stores import Store, open_store

log = logging.getLogger("jobs.encodings")

Array = NDArray[Any]
SHARD = 16
"""Samples in a shard: 9 to 18 MB at 1024 px, small enough to share 64 pictures among 4 workers."""
SHARD_FILE = "shard.safetensors"
FACTS = "facts"
TELL_SECONDS = 60.0


def content_key(parts: Mapping[str, object]) -> str:
    """Return the key of what `parts` (JSON) decide."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def pack(array: NDArray[np.float32], precision: Precision) -> Array:
    """Return numbers of a run of that precision as they are kept: 2 bytes each, 4 for fp32.

    Exact for numbers that were computed in that precision: bf16 is the upper half of fp32, which
    is what is kept, as uint16.
    """
    if precision == "fp32":
        return array
    if precision == "fp16":
        return array.astype(np.float16)
    return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)


def unpack(array: Array) -> Array:
    """Return what `pack` was given, fp32; ids (int32) as they are."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype == np.float16 else array


@dataclass(frozen=True, slots=True)
class Shelf:
    """Rows by number, read from memory-mapped shards of `per_shard` rows."""

    paths: tuple[Path, ...]
    per_shard: int

    def row(self, number: int) -> dict[str, Array]:
        """Return the arrays of one row, as new fp32 or int32 arrays."""
        shard, place = divmod(number, self.per_shard)
        opened = _opened(self.paths[shard])
        return {name: unpack(opened.get_slice(name)[place]) for name in opened.keys()}  # noqa: SIM118

    def fact(self, name: str) -> int:
        """Return the sum of a number that the shards' makers have noted."""
        return sum(json.loads(_opened(path).metadata()[FACTS])[name] for path in self.paths)


@functools.cache
def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, "np")


@dataclass(frozen=True, slots=True)
class Shard:
    """What the maker of a shard returns."""

    rows: Mapping[str, Array]
    """Arrays by name, one entry a row."""
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Tally:
    """What this worker has found and made."""

    found: int = 0
    made: int = 0
    bytes: int = 0


@dataclass
class Cache:
    """The shards in the store, and this attempt's copies of them."""

    store: Store
    folder: Path
    gang: Gang
    tally: Tally = field(default_factory=Tally)
    reads: bool = True
    writes: bool = True

    @classmethod
    def open(cls, env: Environment, gang: Gang) -> Cache:
        """Return the cache of the run's store."""
        return cls(open_store(env.store, env.access), env.work / "shards", gang)

    def shelve(self, keys: Sequence[str], per_shard: int, make: Callable[[int], Shard]) -> Shelf:
        """Bring this worker's share of shards to the disk, from the store or by `make(number)`.

        The others' shards are there when all of them have said so (`Gang.exchange`).

        Raises:
            Stopped: a stop was asked for.
            OSError: the local disk takes nothing more.
        """
        told = time.monotonic()
        for number in self.gang.share(len(keys)):
            self.gang.go_on()
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                log.info("encoding=%d of=%d shards", number, len(keys))
            folder = self.folder / keys[number]
            if self._fetched(keys[number], folder):
                self.tally.found += 1
            else:
                _write(folder, keys[number], make(number))
                self._publish(keys[number], folder)
                self.tally.made += 1
            self.tally.bytes += (folder / SHARD_FILE).stat().st_size
        return Shelf(tuple(self.folder / key / SHARD_FILE for key in keys), per_shard)

    def _fetched(self, key: str, folder: Path) -> bool:
        """Say whether the shard is on the disk, whole; a damaged one is taken out of the store."""
        prefix = f"{layout.CACHE}/latents/{key}"
        if not self.reads:
            return False
        try:
            try:
                commits.download(self.store, prefix, folder)
                _check(folder, key)
            except (BadData, ValueError, FileNotFoundError) as error:
                if commits.is_committed(self.store, prefix):
                    log.warning("latents=ignored key=%s error=%r; computed anew", key, str(error))
                    # What is computed anew may be the very bytes that its manifest promises, and
                    # would not be sent while it counts as committed.
                    self._try(lambda: self.store.delete(f"{prefix}/{layout.COMMITTED}"))
                shutil.rmtree(folder, ignore_errors=True)
                return False
        except OSError as error:
            self.reads = False
            log.warning("latents=not-read error=%r; computed anew", str(error))
            return False
        return True

    def _publish(self, key: str, folder: Path) -> None:
        self._try(lambda: commits.commit(self.store, f"{layout.CACHE}/latents/{key}", folder))

    def _try(self, action: Callable[[], object]) -> None:
        """Write to the store; the first failure is told and ends it: the run does not need it."""
        if not self.writes:
            return
        try:
            action()
        except OSError as error:
            self.writes = False
            log.warning("latents=not-kept error=%r", str(error))


def _write(folder: Path, key: str, shard: Shard) -> None:
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f"{folder.name}.part")
    # One entry: with more of them their order, and so the file's bytes, would differ by chance.
    facts = json.dumps({"key": key, **shard.facts}, sort_keys=True)
    rows = {name: np.ascontiguousarray(array) for name, array in shard.rows.items()}
    part.write_bytes(save(rows, {FACTS: facts}))  # save_file would hide a full disk's errno
    part.replace(folder / SHARD_FILE)


def _check(folder: Path, key: str) -> None:
    """Make sure that the file is a shard, and this key's.

    Raises:
        BadData: it is not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / SHARD_FILE, "np") as opened:
            facts = json.loads((opened.metadata() or {}).get(FACTS, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadData(f"{folder.name}: no shard ({error})") from error
    if not isinstance(facts, dict) or facts.get("key") != key:
        raise BadData(f"{folder.name}: another key's shard")
