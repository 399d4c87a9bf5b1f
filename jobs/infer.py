"""The inference worker, top to bottom in the order of execution.

Must not talk to the store but to read prompts, the LoRA and the compile cache: pictures go to
the outbox.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from jobs import commits, graphs, layout, lora, model, pictures, sampling
from jobs.environment import Environment, Worker
from jobs.errors import BadData, BadSpec, PicturesFailed, Stopped
from jobs.outbox import Outbox
from jobs.specs import InferSpec, PromptRow
from jobs.stores import Store, open_store, sha256_of

log = logging.getLogger("jobs.infer")


def run(env: Environment, spec: InferSpec, worker: Worker) -> None:
    """Paint this worker's batches of the plan until all are handed over, or a stop.

    Raises:
        JobError: see jobs.errors.
    """
    outbox, store = Outbox(env.work), open_store(env.store, env.access)
    kind = model.dtype(spec.precision, env.device)
    folder = model.locate(spec.model, spec.model_revision, env)
    rows = prompts(spec, store)
    started = time.monotonic()
    painter = sampling.Painter(
        folder, kind, width=spec.width, height=spec.height, batch=spec.batch_size
    )
    if spec.lora:
        weights, step = read_lora(spec, store, env)
        count = painter.set_lora(weights, spec.lora_weight)
        log.info("lora=%s step=%d weight=%g modules=%d", spec.lora, step, spec.lora_weight, count)
    constants = {
        name: getattr(spec, name) for name in ("precision", "width", "height", "batch_size")
    }
    constants |= {part: model.config(folder, part) for part in ("unet", "vae")}
    cache = graphs.open_cache("infer", env, worker, constants)
    painter.compile()
    cache.publish()
    compile_s = time.monotonic() - started
    log.info("compile_s=%.1f prompts=%d images=%d", compile_s, len(rows), spec.images)

    done = already_done(store, env.run)
    plan = list(batches(rows, spec))
    todo = [
        batch
        for batch in plan[worker.rank :: worker.world]
        if any((request.line, request.image) not in done for request in batch)
    ]
    failed: list[int] = []
    painted, began = 0, time.monotonic()
    for batch in todo:
        if outbox.stop.exists():
            raise Stopped("stopped between two batches")
        bad = paint(painter, batch, spec, outbox, worker, done)
        painted += sum((r.line, r.image) not in done for r in batch) - len(bad)
        failed += bad
        log.info("painted=%d of=%d workers=%d", painted, sum(map(len, todo)), worker.world)
    summary = {
        "painted": painted,
        "asked": len(rows) * spec.images,
        "failed": failed,
        "seconds": time.monotonic() - began,
        "compile_s": compile_s,
    }
    outbox.summarise(worker.rank, summary)
    if failed:
        # Left as a reason, not raised: msrun would kill the workers that still paint.
        lines = ", ".join(str(line) for line in sorted(set(failed)))
        outbox.fail(
            worker.rank,
            PicturesFailed.code,
            f"pictures of lines {lines} are not a number; choose a wider precision",
        )


def prompts(spec: InferSpec, store: Store) -> tuple[PromptRow, ...]:
    """Return the prompt rows, from the spec or from the store.

    Raises:
        BadData: the file in the store is missing or not the one that was submitted.
    """
    if isinstance(spec.prompts, tuple):
        return spec.prompts
    try:
        raw = store.read(spec.prompts.key)
    except FileNotFoundError as error:
        raise BadData(f"prompts {spec.prompts.key}: not in the store {store.url}") from error
    if hashlib.sha256(raw).hexdigest() != spec.prompts.sha256:
        raise BadData(f"prompts {spec.prompts.key}: not the file that was submitted")
    return tuple(PromptRow.model_validate_json(line) for line in raw.splitlines())


def read_lora(
    spec: InferSpec, store: Store, env: Environment
) -> tuple[dict[str, sampling.Floats], int]:
    """Return a run's LoRA at the step asked for, or its newest committed one, and that step.

    Raises:
        BadSpec: the run has no such step, or no LoRA (it trained the whole UNet).
    """
    assert spec.lora is not None
    steps = commits.committed_steps(store, spec.lora)
    if not steps or (spec.lora_step or steps[-1]) not in steps:
        raise BadSpec(
            f"lora {spec.lora}: committed steps are {steps or 'none'}, asked for {spec.lora_step}"
        )
    step = spec.lora_step or steps[-1]
    prefix = layout.key(spec.lora, layout.CHECKPOINTS, layout.step_name(step))
    files = {row.path: row.sha256 for row in commits.read_manifest(store, prefix).files}
    if layout.LORA_FILE not in files:
        raise BadSpec(
            f"lora {spec.lora}: step {step} holds no LoRA; it was trained by another method"
        )
    path = env.work / "lora" / f"{spec.lora}-{step}-{Worker.read().rank}.safetensors"
    store.get(f"{prefix}/{layout.LORA_FILE}", path)
    if sha256_of(path) != files[layout.LORA_FILE]:
        raise BadData(f"lora {spec.lora}: {layout.LORA_FILE} is not the file that was committed")
    return lora.read(path), step


def already_done(store: Store, run: str) -> set[tuple[int, int]]:
    """Return (line, image) of every picture that an earlier attempt has committed."""
    try:
        rows = store.read(layout.key(run, layout.PICTURES)).splitlines()
    except FileNotFoundError:
        return set()
    return {(row["line"], row["image"]) for row in map(json.loads, rows)}


def batches(rows: Sequence[PromptRow], spec: InferSpec) -> Iterator[tuple[sampling.Request, ...]]:
    """Yield the batches of the whole plan: the same whatever the number of workers or restarts."""
    requests = (
        sampling.Request(row.line, image, row.prompt, spec.negative, spec.seed)
        for row in rows
        for image in range(spec.images)
    )
    while batch := tuple(islice(requests, spec.batch_size)):
        yield batch


def paint(
    painter: sampling.Painter,
    batch: tuple[sampling.Request, ...],
    spec: InferSpec,
    outbox: Outbox,
    worker: Worker,
    done: set[tuple[int, int]],
) -> list[int]:
    """Paint a batch and hand over what is new in it; return the lines of pictures that failed."""
    began = time.monotonic()
    decoded = painter.paint(batch, steps=spec.steps, guidance=spec.guidance)
    seconds = round((time.monotonic() - began) / len(batch), 3)
    failed = []
    for request, picture in zip(batch, decoded, strict=True):
        if (request.line, request.image) in done:
            continue
        if not np.isfinite(picture).all():
            log.warning("failed line=%d image=%d: not a number", request.line, request.image)
            failed.append(request.line)
            continue
        row = {
            "line": request.line,
            "image": request.image,
            "prompt": request.prompt,
            "seed": request.seed,
            "worker": worker.rank,
            "seconds": seconds,
        }
        png = pictures.to_png(pictures.to_pixels(picture))
        outbox.picture(layout.picture_name(request.line, request.image), png, row)
    outbox.beat(worker.rank)
    return failed
