"""Measures the cache of latents at SDXL's real shapes: bytes, seconds, memory, and what rounds off.

    python tests/bench/cache.py [--pictures 1024]

Random numbers stand for what the VAE and the encoders say; a folder is the store. Printed: bytes a
picture and for 100,000 of them, seconds to keep and to fetch shards, microseconds and resident
memory of reading every row in random order, and the error of keeping moments in 2 bytes.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from jobs import diffusion
from jobs.encodings import SHARD, Cache, Shard, Shelf, Tally, content_key, pack, unpack
from jobs.environment import Environment, Worker
from jobs.gang import Gang
from jobs.specs import Precision

EMBEDDING, POOLED, MANY = 2048, 1280, 100_000
SCALING = 0.13025
"""SDXL's vae/config.json."""


def moments(rng: np.random.Generator, size: int, precision: Precision) -> np.ndarray:
    """Return numbers of the size of SDXL's: means of deviation 1 / SCALING, small variances."""
    side = size // 8
    mean = rng.standard_normal((4, side, side), np.float32) / np.float32(SCALING)
    log_variance = rng.uniform(-25, -10, (4, side, side)).astype(np.float32)
    found = np.concatenate([mean, log_variance])
    return pack(found, "fp32" if precision == "fp32" else "fp16")


def shelves(
    place: Path, run: str, size: int, precision: Precision, count: int
) -> tuple[Shelf, Shelf, Tally, float]:
    """Return the two shelves of a run, its cache's tally and the seconds they took."""
    env = Environment(spec="", run=run, store=str(place / "store"), uid="u", work=place / run)
    cache = Cache.open(env, Gang.of(env, Worker(0, 1)))
    rng = np.random.default_rng(0)
    ids = np.zeros((SHARD, 6), np.float32)

    def pictures(_number: int) -> Shard:
        rows = np.stack([moments(rng, size, precision) for _ in range(SHARD)])
        return Shard({"moments": rows, "time_ids": ids})

    def captions(_number: int) -> Shard:
        text = rng.standard_normal((SHARD, 77, EMBEDDING), np.float32)
        pooled = rng.standard_normal((SHARD, POOLED), np.float32)
        return Shard({"text": pack(text, precision), "text_2": pack(pooled, precision)})

    began = time.monotonic()
    found = [
        cache.shelve([content_key({what: n}) for n in range(count // SHARD)], SHARD, make)
        for what, make in (("pictures", pictures), ("captions", captions))
    ]
    return found[0], found[1], cache.tally, time.monotonic() - began


def anonymous_mib() -> float:
    """Return this process's memory that is not a mapped file (proc(5), RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


def rounding() -> str:
    """Return how far latents from 2-byte moments are from exact ones."""
    rng = np.random.default_rng(1)
    exact = moments(rng, 1024, "fp32")
    noise = rng.standard_normal((4, 128, 128), np.float32)
    one, two = (
        diffusion.latents(found, noise, SCALING) for found in (exact, unpack(pack(exact, "fp16")))
    )
    half = np.abs(one - one.astype(np.float16).astype(np.float32))
    error = np.abs(one - two)
    return (
        f"latents of 2-byte moments: error at most {error.max():.1e}, rms "
        f"{np.sqrt(np.mean(error**2)):.1e}; of a 16-bit UNet's input itself {half.max():.1e}, "
        f"{np.sqrt(np.mean(half**2)):.1e}"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1024)
    count = parser.parse_args().pictures // SHARD * SHARD
    print(rounding())
    cases: tuple[tuple[int, Precision], ...] = (
        (1024, "fp16"), (1024, "fp32"), (512, "fp16"), (128, "fp32"),
    )  # fmt: skip
    for size, precision in cases:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            *_, tally, making = shelves(place, "first", size, precision, count)
            os.sync()
            pictures, captions, again, fetching = shelves(place, "second", size, precision, count)
            assert again.made == 0
            before = anonymous_mib()
            order = np.random.default_rng(2).permutation(count)
            began = time.monotonic()
            for index in order:
                pictures.row(int(index))
                captions.row(int(index))
            each = (time.monotonic() - began) / count
            grown = anonymous_mib() - before
            size_each = tally.bytes / count
            print(
                f"{size} px {precision}: {size_each:,.0f} bytes a picture, {MANY:,} pictures "
                f"{size_each * MANY / 1e9:.1f} GB in {2 * MANY // SHARD:,} shards; of {count}: "
                f"drawn and kept {making:.1f} s, fetched {fetching:.1f} s "
                f"({tally.bytes / fetching / 2**20:.0f} MiB/s), row {1e6 * each:.0f} us, "
                f"memory that is not the files' +{grown:.1f} MiB"
            )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB, files included")


if __name__ == "__main__":
    main()
