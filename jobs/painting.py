"""Owns what happens to a batch: painted, judged, tried again, handed over with row and recipe.

Must not read prompts or decide what is in a batch.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs import layout, pictures, recipes, sampling
from jobs.batches import Batch, Request
from jobs.developing import Developer
from jobs.environment import Worker
from jobs.outbox import Outbox
from jobs.specs import InferSpec

log = logging.getLogger("jobs.infer")

NO_MEMORY = re.compile(
    r"out of memory|memory (is not|isn.t|not) enough|(alloc|malloc)\w*\b.*\bfail|fail\w* to alloc",
    re.IGNORECASE,
)
"""What MindSpore and CANN say when a device has no room; they raise RuntimeError for all."""


@dataclass
class Session:
    """What the batches of one worker share."""

    painter: sampling.Painter
    spec: InferSpec
    outbox: Outbox
    worker: Worker
    place: int
    """Which of the workers of all nodes it is."""
    developer: Developer
    common: dict[str, object]
    """Of every recipe: model, LoRA and what else the pictures' rows do not say."""
    painted: int = 0
    failures: list[dict[str, object]] = field(default_factory=list)


def paint(session: Session, batch: Batch) -> None:
    """Paint a batch and hand it over; a picture that fails is tried once more alone.

    What is handed over comes from a call in which no picture failed: what is not a number leaves
    its traces in the last bits of its neighbours (measured on CPU).
    """
    found = painted(session.painter, batch)
    bad = {slot for slot, request in enumerate(batch.slots) if request and found.reasons[slot]}
    for slot in sorted(bad):
        request = batch.slots[slot]
        assert request is not None
        log.warning("again line=%d image=%d: %s", request.line, request.image, found.reasons[slot])
        alone = painted(session.painter, batch.only({slot}))
        if reason := alone.reasons[slot]:
            log.warning("failed line=%d image=%d: %s", request.line, request.image, reason)
            failure = {"line": request.line, "image": request.image, "reason": reason}
            session.failures.append(failure)
        else:
            hand_over(session, batch, slot, alone)
    good = batch.only({slot for slot, r in enumerate(batch.slots) if r} - bad)
    if bad and good.pictures:
        paint(session, good)
        return
    for slot, request in enumerate(good.slots):
        if request is not None:
            hand_over(session, good, slot, found)
    session.outbox.beat(session.worker.rank)


@dataclass(frozen=True, slots=True)
class Found:
    """What a call has painted, by slot."""

    pictures: Sequence[sampling.Floats | None]
    reasons: Sequence[str]
    """What is wrong with each; empty if nothing is."""
    seconds: float
    """Of each picture that was asked for."""


def painted(painter: sampling.Painter, batch: Batch) -> Found:
    """Paint a batch; a device that has no room for it is told as the reason of each picture."""
    began, found, reasons = time.monotonic(), None, []
    try:
        found = painter.paint(
            batch.slots,
            steps=batch.steps,
            scheduler=batch.scheduler,
            size=(batch.width, batch.height),
        )
        reasons = [pictures.fault(picture) for picture in found]
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not NO_MEMORY.search(str(error)):
            raise
        reasons = ["out of memory; lower batch_size or the size"] * len(batch.slots)
    seconds = round((time.monotonic() - began) / len(batch.pictures), 3)
    return Found([None] * len(reasons) if found is None else list(found), reasons, seconds)


def hand_over(session: Session, batch: Batch, slot: int, found: Found) -> None:
    """Give a picture to the thread that writes it, with its recipe and its manifest row."""
    request, picture = batch.slots[slot], found.pictures[slot]
    assert request is not None
    assert picture is not None
    settings = settings_of(session.painter, batch, slot, request)
    texts = recipes.texts({**session.common, **settings})
    row = {**settings, "worker": session.place, "seconds": found.seconds}
    name = layout.picture_name(request.line, request.image)
    session.developer.give(name, picture, texts, row)
    session.painted += 1


def settings_of(
    painter: sampling.Painter, batch: Batch, slot: int, request: Request
) -> dict[str, object]:
    """Return all that decides a picture, beside model and LoRA."""
    return {
        "line": request.line,
        "image": request.image,
        "prompt": request.prompt,
        **({} if request.negative is None else {"negative": request.negative}),
        "seed": request.seed,
        "scheduler": painter.table(batch.scheduler, batch.steps).name,
        "steps": batch.steps,
        "guidance": request.guidance,
        "guidance_rescale": request.rescale,
        "width": batch.width,
        "height": batch.height,
        "slot": slot,
    }


def summary(session: Session) -> dict[str, object]:
    """Return what this worker has done, and where its time went."""
    painter = session.painter
    return {
        "painted": session.painted,
        "failures": session.failures,
        "split": {**painter.seconds, "encode": session.developer.seconds},
        "steps": painter.step_seconds,
    }
