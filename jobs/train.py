"""The training worker, top to bottom in the order of execution.

Must not talk to the store but for the compile cache: checkpoints and records go to the outbox.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs import checkpoints, graphs, latents, layout, lora, model, pictures, sampling
from jobs.data import load
from jobs.environment import Environment, Worker
from jobs.errors import Diverged, Stopped
from jobs.feed import Feed
from jobs.outbox import Outbox
from jobs.specs import TrainSpec
from jobs.step import CaptionLoss, NoiseLoss, TrainStep

log = logging.getLogger("jobs.train")


@dataclass
class Loop:
    """What the loop carries from step to step, beside the compiled step's own Parameters."""

    done: int
    resumed: int
    loss: float = float("nan")
    grad_norm: float = float("nan")
    seconds: list[float] = field(default_factory=list)


def run(env: Environment, spec: TrainSpec, worker: Worker) -> None:
    """Train on this worker until `spec.steps`, a stop or a failure.

    Raises:
        JobError: see jobs.errors.
    """
    outbox = Outbox(env.work)
    kind = model.dtype(spec.precision, env.device)
    folder = model.locate(spec.model, spec.model_revision, env)
    log.info("model=%s method=%s precision=%s", spec.model, spec.method, spec.precision)
    captioned = load(spec, env)
    log.info("data=%s pictures=%d", spec.data, len(captioned.captions))
    started = time.monotonic()
    encoded = latents.encode(captioned, folder, kind, spec, env, worker)
    log.info("encoded=%d seconds=%.1f", len(captioned.captions), time.monotonic() - started)
    step = build(folder, kind, spec, worker)
    restored = sorted((env.work / "restored").glob("step-*"))
    done = checkpoints.restore(restored[-1], spec, step) if restored else 0
    log.info(
        "start=%d from=%s steps=%d", done, restored[-1].name if restored else "nothing", spec.steps
    )

    started = time.monotonic()
    cache = graphs.open_cache("train", env, worker, constants(folder, spec))
    painter = None
    if spec.validation_prompts:
        # Before the step: the order of compilation must not depend on where a run resumes.
        painter = painter_for(folder, kind, spec)
    loop = Loop(done, resumed=done)
    compile_s = time.monotonic() - started
    feed = Feed(encoded, spec, worker, folder)
    while loop.done < spec.steps:
        stops = once(step, feed, spec, loop, stop=outbox.stop.exists())
        if loop.done == loop.resumed + 1:
            compile_s += loop.seconds[0]
            log.info("compile_s=%.1f", compile_s)
            cache.publish()
        outbox.beat(worker.rank)
        due = stops > 0 or loop.done == spec.steps or loop.done % spec.save_every == 0
        if worker.rank == 0:
            report(outbox, spec, worker, loop)
            if due:
                save(outbox, spec, step, loop.done)
        if stops and loop.done < spec.steps:
            raise Stopped(f"stopped after step {loop.done}")
        every = spec.validate_every
        if painter and every and loop.done % every == 0 and loop.done < spec.steps:
            validate(painter, step, spec, outbox, worker, loop.done)
    if painter:
        validate(painter, step, spec, outbox, worker, loop.done)
    if worker.rank == 0:
        outbox.summarise(0, summary(spec, worker, loop, compile_s))


def build(folder: Path, kind: Any, spec: TrainSpec, worker: Worker) -> TrainStep:
    """Return the compiled step for a method, with fresh weights of what is trained."""
    inject = partial(lora.inject, rank=spec.lora_rank, alpha=spec.lora_alpha, seed=spec.seed)
    unet = model.load_unet(folder, kind)
    loss: Any = NoiseLoss(unet, kind)
    if spec.method == "vanilla":
        if spec.precision != "fp32":
            # The masters are the fp32 weights; the graph computes in `kind`.
            unet = model.load_unet(folder, model.DTYPES["fp32"])
            unet.to_float(kind)
            loss = NoiseLoss(unet, kind)
        trained = {f"unet.{name}": p for name, p in unet.parameters_and_names()}
        for parameter in trained.values():
            parameter.requires_grad = True
    else:
        trained = inject(unet, "unet", lora.TARGETS)
    if spec.method == "lora-te":
        cells = model.load_text_encoders(folder, kind).cells
        for name, cell in zip(("text_encoder", "text_encoder_2"), cells, strict=True):
            trained |= inject(cell, name, lora.TEXT_TARGETS)
        loss = CaptionLoss(unet, cells, kind)
    loss.set_train(True)
    log.info("trained=%d parameters=%d", len(trained), sum(p.size for p in trained.values()))
    return TrainStep(
        loss,
        trained,
        workers=worker.world,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        scaled=spec.precision == "fp16",
    )


def constants(folder: Path, spec: TrainSpec) -> dict[str, object]:
    """Return every value that is baked into one of the program's graphs."""
    names = (
        "method", "precision", "resolution", "batch_size", "lora_rank", "lora_alpha",
        "weight_decay", "max_grad_norm",
    )  # fmt: skip
    found: dict[str, object] = {name: getattr(spec, name) for name in names}
    found["validation"] = bool(spec.validation_prompts)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        found[part] = model.config(folder, part)
    return found


def painter_for(folder: Path, kind: Any, spec: TrainSpec) -> sampling.Painter:
    """Return a painter of validation pictures, its graphs compiled."""
    painter = sampling.Painter(folder, kind, width=spec.resolution, height=spec.resolution, batch=1)
    painter.compile()
    return painter


def once(step: TrainStep, feed: Feed, spec: TrainSpec, loop: Loop, *, stop: bool) -> int:
    """Do one step; return how many workers were asked to stop.

    Raises:
        Diverged: the loss is not finite.
    """
    import mindspore as ms

    began = time.monotonic()
    scalars = (spec.learning_rate, float(loop.done + 1), float(stop))
    inputs = (*feed.inputs(loop.done), *(ms.Tensor(value, ms.float32) for value in scalars))
    loss, norm, stops = step(*inputs)
    loop.loss, loop.grad_norm = float(loss.asnumpy()), float(norm.asnumpy())
    loop.done += 1
    loop.seconds.append(time.monotonic() - began)
    check_finite(step, spec, loop)
    return round(float(stops.asnumpy()))


def check_finite(step: TrainStep, spec: TrainSpec, loop: Loop) -> None:
    """Make sure that the step was a step.

    Raises:
        Diverged: the loss is not finite, or the gradient is not and no loss scale can cure it.
    """
    curable = step.scaled and float(step.scale.asnumpy()) > 1.0
    if np.isfinite(loop.loss) and (np.isfinite(loop.grad_norm) or curable):
        return
    what = ("loss", loop.loss) if not np.isfinite(loop.loss) else ("gradient norm", loop.grad_norm)
    raise Diverged(
        f"step {loop.done}: the {what[0]} is {what[1]}; lower learning_rate "
        f"({spec.learning_rate:g}) or lora_alpha, or choose a wider precision than {spec.precision}"
    )


def report(outbox: Outbox, spec: TrainSpec, worker: Worker, loop: Loop) -> None:
    """Write a metrics row and a log line every `log_every` steps, for the first and the last."""
    if loop.done % spec.log_every and loop.done not in (1, spec.steps):
        return
    row: dict[str, object] = {
        "step": loop.done,
        "steps": spec.steps,
        "loss": loop.loss,
        "lr": spec.learning_rate,
        "grad_norm": loop.grad_norm,
        **speed(spec, worker, loop),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    outbox.append(layout.METRICS, row)
    pace = f" ms_per_step={row['ms_per_step']} img_s={row['img_s']}" if row["img_s"] else ""
    numbers = (loop.done, spec.steps, loop.loss, loop.grad_norm)
    log.info("step=%d/%d loss=%.6f grad_norm=%.4f%s", *numbers, pace)


def speed(spec: TrainSpec, worker: Worker, loop: Loop) -> dict[str, float | None]:
    """Return milliseconds a step and pictures a second, over all workers; none before step 2."""
    if len(loop.seconds) < 2:
        return {"ms_per_step": None, "img_s": None}
    # The median of the steps so far without the first, which compiles.
    seconds = float(np.median(loop.seconds[1:]))
    rate = spec.batch_size * worker.world / seconds
    return {"ms_per_step": round(1000 * seconds, 2), "img_s": round(rate, 3)}


def save(outbox: Outbox, spec: TrainSpec, step: TrainStep, done: int) -> None:
    """Write the whole state to the local disk and hand it over to the uploader."""
    began = time.monotonic()
    draft = outbox.draft(done)
    checkpoints.save(draft, spec, step, done)
    outbox.publish(draft)
    log.info("saved=%s seconds=%.2f", layout.step_name(done), time.monotonic() - began)


def validate(
    painter: sampling.Painter,
    step: TrainStep,
    spec: TrainSpec,
    outbox: Outbox,
    worker: Worker,
    done: int,
) -> None:
    """Paint this worker's share of the validation prompts with the weights as they are."""
    trained = step.trained()
    if spec.method == "vanilla":
        painter.set_unet(trained)
    else:
        weights = lora.diffusers_weights(trained, spec.lora_alpha / spec.lora_rank)
        painter.set_lora(weights, 1.0)
    for index in range(worker.rank, len(spec.validation_prompts), worker.world):
        began = time.monotonic()
        prompt = spec.validation_prompts[index]
        request = sampling.Request(index + 1, 0, prompt, None, spec.seed)
        decoded = painter.paint([request], steps=spec.validation_steps, guidance=7.5)[0]
        name = f"{layout.step_name(done)}-{index:02d}.png"
        row = {"line": index + 1, "image": 0, "step": done, "prompt": prompt, "seed": spec.seed}
        row |= {"worker": worker.rank, "seconds": round(time.monotonic() - began, 3)}
        outbox.picture(name, pictures.to_png(pictures.to_pixels(decoded)), row)
        outbox.beat(worker.rank)
        log.info("validation=%s prompt=%r", name, prompt)


def summary(spec: TrainSpec, worker: Worker, loop: Loop, compile_s: float) -> dict[str, object]:
    """Return the result in the columns of the reference's table."""
    return {
        "kind": "train",
        "method": spec.method,
        "precision": spec.precision,
        "resolution": spec.resolution,
        "npus": worker.world,
        "global_batch": spec.batch_size * worker.world,
        "steps": loop.done,
        "compile_s": round(compile_s, 1),
        **speed(spec, worker, loop),
        "loss": loop.loss if loop.seconds else None,
        "checkpoint": f"{layout.CHECKPOINTS}/{layout.step_name(loop.done)}",
    }
