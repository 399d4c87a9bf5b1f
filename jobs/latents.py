"""Owns what the frozen parts say of the pictures: VAE moments and caption embeddings.

Computed by all workers together, each its share, one picture at a time, so that the numbers do
not depend on the number of workers; kept by encodings. Must not draw random numbers of its own.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from jobs import draws, model, pixels, versions
from jobs.compat import eager
from jobs.data import Captioned
from jobs.digests import Digests
from jobs.encodings import SHARD, Cache, Shard, Shelf, content_key, pack
from jobs.environment import Environment, Worker
from jobs.errors import BadSpec
from jobs.gang import Gang
from jobs.specs import TrainSpec
from jobs.stores import sha256_of

log = logging.getLogger("jobs.latents")

Array = NDArray[Any]
SOURCES = ("latents.py", "pixels.py", "model.py", "encodings.py", "draws.py")
"""Modules whose text decides the numbers."""
SAMPLE_HEX = 8
"""Digits by which a sample is known again."""
PACKAGES = ("mindspore", "mindone", "numpy", "pillow", "transformers")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is known of each sample, memory-mapped."""

    pictures: Shelf
    captions: Shelf
    count: int
    """Samples."""
    views: int
    """Crops and mirror images of each picture."""
    samples: str = ""
    """What each sample is, picture and caption, SAMPLE_HEX digits of its digest after another."""
    bounds: tuple[int, ...] = ()
    """Row of each sample's first caption, and the number of captions behind; none where each
    sample has one."""

    def variants(self, index: int) -> int:
        """Return how many captions sample `index` has."""
        return self.bounds[index + 1] - self.bounds[index] if self.bounds else 1

    def row(self, index: int, view: int, variant: int = 0) -> tuple[Array, Array, Array, Array]:
        """Return what a step needs of sample `index`, in crop `view`, with caption `variant`.

        Returns:
            moments (mean and log variance, [2C, h, w] fp32), time_ids [6] fp32, and either
            embeddings [77, d] fp32 and pooled embedding [p] fp32, or the token ids of both
            encoders, [77] int32 each, where the encoders are trained.
        """
        picture = self.pictures.row(index * self.views + view)
        caption = self.captions.row((self.bounds[index] if self.bounds else index) + variant)
        return picture["moments"], picture["time_ids"], caption["text"], caption["text_2"]


def encode(
    captioned: Captioned, folder: Path, kind: Any, spec: TrainSpec, env: Environment, worker: Worker
) -> Encoded:
    """Return all samples' rows: found in the store's cache, or made there by all workers.

    Raises:
        BadData: a picture cannot be read; it is named.
        Stopped: a stop was asked for.
    """
    gang = Gang.of(env, worker)
    maker = _Maker(captioned, folder, kind, spec, gang)
    cache = Cache.open(env, gang)
    pictures, captions, samples = _keys(captioned, folder, spec, env, gang)
    views = len(maker.places(0)) * (2 if spec.flip else 1)
    count, texts = len(captioned.captions), len(maker.texts)
    encoded = Encoded(
        pictures=cache.shelve(pictures, SHARD * views, maker.pictures),
        captions=cache.shelve(captions, SHARD, maker.captions),
        count=count,
        views=views,
        samples=samples,
        bounds=_bounds(captioned),
    )
    tallies = gang.exchange("tally", asdict(cache.tally))
    found, made, size = (sum(row[name] for row in tallies) for name in ("found", "made", "bytes"))
    state = "hit" if not made else "miss" if not found else "part"
    numbers = (state, found, made, views, size // count)
    log.info("latents=%s shards_found=%d made=%d views=%d bytes_per_picture=%d", *numbers)
    if long := encoded.captions.fact("long"):
        told = (long, texts, model.TOKENS)
        log.warning("captions=long count=%d of=%d: what is past %d tokens is not read", *told)
    return encoded


@dataclass
class _Maker:
    """Computes shards; loads the frozen parts when the first one is missing."""

    captioned: Captioned
    folder: Path
    kind: Any
    spec: TrainSpec
    gang: Gang

    @cached_property
    def texts(self) -> list[str]:
        """All captions, those of a picture after another."""
        return _texts(self.captioned)

    @cached_property
    def vae(self) -> Any:
        return model.load_vae(self.folder)

    @cached_property
    def encoders(self) -> model.TextEncoders:
        return model.load_text_encoders(self.folder, self.kind)

    @cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        return model.load_tokenizers(self.folder)

    def places(self, index: int) -> list[pixels.Place]:
        """Return where the crops of a picture lie."""
        if self.spec.crop == "centre":
            return [pixels.CENTRE]
        seed, numbers = self.spec.seed, range(self.spec.crops_per_picture)
        return [draws.crop_place(seed, index, number) for number in numbers]

    def pictures(self, shard: int) -> Shard:
        """Return moments and time_ids of a shard's pictures, all views of one after another."""
        moments, ids = [], []
        for index in _samples(shard, len(self.captioned.captions)):
            self.gang.go_on()
            views = self.captioned.views(
                index, self.spec.resolution, self.places(index), flip=self.spec.flip
            )
            for view in views:
                with eager():
                    found = self.vae.encode(Tensor(view.pixels[None]))[0].astype(ms.float32)
                moments.append(pack(_bounded(found.asnumpy()[0]), self._moments_precision()))
                ids.append(view.time_ids)
        return Shard({"moments": np.stack(moments), "time_ids": np.stack(ids)})

    def _moments_precision(self) -> Any:
        # The VAE computes in fp32 whatever the run's precision, and its means need more digits
        # than bf16 has.
        return "fp32" if self.spec.precision == "fp32" else "fp16"

    def captions(self, shard: int) -> Shard:
        """Return embeddings, or token ids where the encoders are trained, of a shard's captions."""
        rows, long = [], 0
        for index in _samples(shard, len(self.texts)):
            self.gang.go_on()
            caption = self.texts[index]
            long += model.is_long(self.tokenizers, caption)
            if self.spec.method == "lora-te":
                rows.append(model.token_ids(self.tokenizers, caption))
            else:
                text, pooled = self.encoders.encode(caption)
                rows.append((pack(text, self.spec.precision), pack(pooled, self.spec.precision)))
        text, text_2 = (np.stack(column) for column in zip(*rows, strict=True))
        return Shard({"text": text, "text_2": text_2}, {"long": long})


def _bounded(moments: Array) -> Array:
    """Return moments [2C, h, w] with the log variance in the range that is used of it."""
    mean, log_variance = np.split(moments, 2)
    return np.concatenate([mean, np.clip(log_variance, -30.0, 20.0)])  # as diffusion.latents


def _bounds(captioned: Captioned) -> tuple[int, ...]:
    counts = [len(variants) for variants in captioned.captions]
    return tuple(accumulate(counts, initial=0)) if max(counts) > 1 else ()


def _texts(captioned: Captioned) -> list[str]:
    return [text for variants in captioned.captions for text in variants]


def _samples(shard: int, count: int) -> range:
    return range(shard * SHARD, min(count, (shard + 1) * SHARD))


def _keys(
    captioned: Captioned, folder: Path, spec: TrainSpec, env: Environment, gang: Gang
) -> tuple[list[str], list[str], str]:
    """Return the content keys of the pictures' shards and of the captions', and the samples."""
    digests = Digests.open(env.cache / "digests", gang.worker.rank)
    count = len(captioned.captions)

    def shared(what: str, number: int, one: Callable[[int], str]) -> list[str]:
        mine = []
        for index in gang.share(number):
            gang.go_on()
            mine.append(one(index))
        return gang.gather(what, mine, number)

    trained_text = spec.method == "lora-te"
    encoders = [] if trained_text else ["text_encoder", "text_encoder_2"]
    needed = ["vae", "tokenizer", "tokenizer_2", *encoders]
    files = [path for part in needed for path in _files(folder, part)]
    weights = shared("weights", len(files), lambda index: digests.of(files[index]))
    names = [path.relative_to(folder).as_posix() for path in files]
    parts = dict(zip(names, weights, strict=True))
    bytes_ = shared("pictures", count, lambda index: captioned.digest(index, digests))
    digests.save()
    here = Path(__file__).parent
    machine = {
        "sources": {name: sha256_of(here / name) for name in SOURCES},
        "versions": versions.of(PACKAGES),
        # A number of cores changes the last bits (measured); so do kinds of device.
        "device": [env.device, platform.machine()],
        "cores": len(os.sched_getaffinity(0)) if env.device == "CPU" else 0,
    }
    of_pictures = {
        **machine,
        "vae": {name: digest for name, digest in parts.items() if name.startswith("vae/")},
        "resolution": spec.resolution,
        "bytes": 4 if spec.precision == "fp32" else 2,
        "crop": [spec.crop, spec.flip, spec.crops_per_picture],
    }
    of_captions = {
        **machine,
        "text": {name: digest for name, digest in parts.items() if not name.startswith("vae/")},
        "precision": "ids" if trained_text else spec.precision,
    }
    pictures = []
    for shard in range(-(-count // SHARD)):
        rows = _samples(shard, count)
        drawn = [spec.seed, rows[0]] if spec.crop == "random" else None
        own = {"pictures": [bytes_[index] for index in rows], "drawn": drawn}
        pictures.append(content_key(of_pictures | own))
    texts = _texts(captioned)
    captions = [
        content_key(of_captions | {"captions": texts[start : start + SHARD]})
        for start in range(0, len(texts), SHARD)
    ]
    samples = "".join(
        content_key({"picture": digest, "caption": own[0] if len(own) == 1 else own})[:SAMPLE_HEX]
        for digest, own in zip(bytes_, captioned.captions, strict=True)
    )
    return pictures, captions, samples


def _files(folder: Path, part: str) -> list[Path]:
    """Return the files of one part of a pipeline, in order of name.

    Raises:
        BadSpec: there are none.
    """
    found = sorted(path for path in (folder / part).rglob("*") if path.is_file())
    if not found:
        raise BadSpec(f"model {folder}: has no {part}")
    return found
