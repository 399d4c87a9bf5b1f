"""The training worker, top to bottom in the order of execution.

Must not talk to the store but for the caches: checkpoints and records go to the outbox.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs import (
    checkpoints,
    exports,
    graphs,
    latents,
    layout,
    lora,
    methods,
    model,
    pictures,
    rates,
    sampling,
)
from jobs.data import Captioned, load
from jobs.environment import Environment, Worker
from jobs.errors import BadData, Diverged, Stopped
from jobs.feed import Feed
from jobs.journal import Journal, Row
from jobs.outbox import Outbox
from jobs.specs import TrainSpec
from jobs.specs import graphs as graphs_of
from jobs.step import Outcome, Scalars, TrainStep

log = logging.getLogger("jobs.train")


@dataclass(frozen=True, slots=True)
class Run:
    """What the loop works with; what changes in it is the step's state and the journal."""

    spec: TrainSpec
    worker: Worker
    outbox: Outbox
    folder: Path
    """The model's pipeline."""
    step: TrainStep
    key: Any
    """Parameter of the dropout masks' key [B, 2]; none without dropout."""
    feed: Feed
    journal: Journal
    painter: sampling.Painter | None


def run(env: Environment, spec: TrainSpec, worker: Worker) -> None:
    """Train on this worker until `spec.steps`, the end of its time, a stop or a failure.

    Raises:
        JobError: see jobs.errors.
    """
    kind = model.dtype(spec.precision, env.device)
    attention = model.attention(spec.flash_attention, kind, env.device)
    folder = model.locate(
        spec.model, spec.model_revision, env,
        config_from=spec.model_config_from, vae=spec.vae, vae_revision=spec.vae_revision,
    )  # fmt: skip
    told = (spec.model, spec.method, spec.precision, attention)
    log.info("model=%s method=%s precision=%s attention=%s", *told)
    names = graphs_of(spec)
    log.info("shapes=%d to compile: %s", len(names), ", ".join(names))
    captioned = load(spec, env)
    sizes = (len(captioned.captions), sum(map(len, captioned.captions)))
    log.info("data=%s pictures=%d captions=%d", spec.data, *sizes)
    started = time.monotonic()
    encoded = latents.encode(captioned, folder, kind, spec, env, worker)
    log.info("encoded=%d seconds=%.1f", len(captioned.captions), time.monotonic() - started)
    feed = Feed(encoded, spec, worker, folder)
    step, key = methods.build(folder, kind, spec, worker)
    restored = sorted((env.work / "restored").glob("step-*"))
    done, changed = checkpoints.restore(restored[-1], spec, step) if restored else (0, [])
    begin = restored[-1].name if restored else "nothing"
    log.info("start=%d from=%s steps=%d", done, begin, spec.steps)

    journal = Journal(env, spec, worker)
    if restored:
        changed += check_samples(restored[-1], captioned, encoded, spec)
    if changed:
        journal.tell_fork(done, changed)
    cache = graphs.open_cache("train", env, worker, methods.constants(folder, spec))
    painter = None
    if spec.validation_prompts:
        # Before the step: the order of compilation must not depend on where a run resumes.
        with journal.clock.phase("compile"):
            painter = painter_for(folder, kind, spec)
    this = Run(spec, worker, Outbox(env.work), folder, step, key, feed, journal, painter)
    loop(this, done, cache)


def check_samples(
    folder: Path, captioned: Captioned, encoded: latents.Encoded, spec: TrainSpec
) -> list[str]:
    """Make sure that the data set is the one of a checkpoint; return how a fork changes it.

    Raises:
        BadData: it is another one; the first sample that differs is named.
    """
    index = checkpoints.other_sample(folder, encoded.samples, latents.SAMPLE_HEX)
    if index is None:
        return []
    there = index < encoded.count
    what = f"{captioned.name(index)} is another sample" if there else f"has lost sample {index}"
    told = f"data {spec.data}: changed since {folder.name}: {what}; {encoded.count} samples now"
    if spec.fork:
        return [told]
    raise BadData(
        f"{told}; --fork the run, with the data as it is or brought back, or use a new run name"
    )


def loop(this: Run, done: int, cache: graphs.Graphs) -> None:
    """Do the steps after `done`, and what is due after each.

    Raises:
        Diverged: a step is not finite.
        Stopped: on request; a checkpoint of the newest step is handed over.
    """
    spec, journal = this.spec, this.journal
    ended, outcome = done >= spec.steps, None
    if done:
        # A checkpoint comes before its pictures, and a stop or a kill between them. Painting
        # compiles nothing (measured), so the step's graph stays the next one of the cache.
        validate_if_due(this, done, ended=ended)
    while not ended:
        outcome = once(this, done)
        done += 1
        check_finite(spec, done, outcome)
        if len(journal.seconds) == 1:
            cache.publish()
        this.outbox.beat(this.worker.rank)
        ended = done >= spec.steps or outcome.late > 0
        saving = ended or outcome.stops > 0 or done % spec.save_every == 0
        if this.worker.rank == 0:
            if saving or journal.is_due(done):
                journal.tell(row(this, done, outcome))
            if saving:
                save(this, done, ended=ended)
        if outcome.stops and not ended:
            raise Stopped(f"stopped after step {done}")
        validate_if_due(this, done, ended=ended)
    if this.worker.rank == 0:
        this.outbox.summarise(0, journal.result(done, outcome.loss if outcome else None))


def painter_for(folder: Path, kind: Any, spec: TrainSpec) -> sampling.Painter:
    """Return a painter of validation pictures, its graphs compiled."""
    painter = sampling.Painter(folder, kind, width=spec.resolution, height=spec.resolution, batch=1)
    painter.prediction = spec.prediction_type
    painter.compile()
    return painter


def once(this: Run, done: int) -> Outcome:
    """Do the step after `done` steps, and count its time."""
    journal, spec = this.journal, this.spec
    late = spec.max_minutes is not None and journal.clock.minutes() >= spec.max_minutes
    # The clock of the first worker decides.
    late = late and this.worker.rank == 0
    began, before = time.monotonic(), journal.clock.row["data"]
    outcome = this.step(
        batches(this, done), scalars(spec, done, stop=this.outbox.stop.exists(), late=late)
    )
    seconds = time.monotonic() - began
    data = journal.clock.row["data"] - before
    journal.clock.add("step" if journal.seconds else "compile", seconds - data)
    journal.seconds.append(seconds)
    return outcome


def batches(this: Run, done: int) -> Iterator[tuple[Any, ...]]:
    """Yield this worker's batches of the step after `done` steps."""
    for part in range(this.spec.accumulate):
        with this.journal.clock.phase("data"):
            if this.key is not None:
                this.key.set_data(this.feed.dropout_key(done, part))
            inputs = this.feed.inputs(done, part)
        yield inputs


def scalars(spec: TrainSpec, done: int, *, stop: bool = False, late: bool = False) -> Scalars:
    """Return what else the step after `done` steps takes: all of it goes by the step."""
    factor = rates.factor(
        spec.lr_schedule, done, steps=spec.steps, warmup=spec.warmup_steps, cycles=spec.lr_cycles
    )
    return Scalars(
        number=done + 1,
        lr=spec.learning_rate * factor,
        text_lr=(spec.text_encoder_learning_rate or spec.learning_rate) * factor,
        decay=rates.average_decay(spec.ema_decay, done),
        stop=stop,
        late=late,
    )


def check_finite(spec: TrainSpec, done: int, outcome: Outcome) -> None:
    """Make sure that the step was a step, or that a smaller loss scale is left to try.

    Raises:
        Diverged: the loss is not finite, or the gradient is not with a loss scale of 1 either.
    """
    loss, norm = outcome.loss, outcome.grad_norm
    if np.isfinite(loss) and (np.isfinite(norm) or outcome.scale > 1.0):
        return
    what = ("loss", loss) if not np.isfinite(loss) else ("gradient norm", norm)
    raise Diverged(
        f"step {done}: the {what[0]} is {what[1]}; lower learning_rate "
        f"({spec.learning_rate:g}) or lora_alpha, or choose a wider precision than {spec.precision}"
    )


def row(this: Run, done: int, outcome: Outcome) -> Row:
    """Return what the records tell of step number `done`."""
    return Row(
        step=done,
        loss=outcome.loss,
        lr=scalars(this.spec, done - 1).lr,
        grad_norm=outcome.grad_norm,
        loss_scale=this.step.scale(),
    )


def save(this: Run, done: int, *, ended: bool) -> None:
    """Write the whole state to the local disk and hand it over to the uploader."""
    began = time.monotonic()
    with this.journal.clock.phase("checkpoint"):
        draft = this.outbox.draft(done)
        checkpoints.save(draft, this.spec, this.step, done, samples=this.feed.encoded.samples)
        if ended and this.spec.method == "vanilla":
            exports.write_pipeline(
                draft / layout.PIPELINE, this.folder, this.spec, this.step.weights()
            )
        this.outbox.publish(draft)
    log.info("saved=%s seconds=%.2f", layout.step_name(done), time.monotonic() - began)


def validate_if_due(this: Run, done: int, *, ended: bool) -> None:
    """Paint the validation prompts at the end, and every `validate_every` steps."""
    every = this.spec.validate_every
    if this.painter and (ended or (every and done % every == 0)):
        validate(this.painter, this, done)


def validate(painter: sampling.Painter, this: Run, done: int) -> None:
    """Paint this worker's share of the validation prompts with the weights as they are."""
    spec, worker, outbox = this.spec, this.worker, this.outbox
    with this.journal.clock.phase("validation"):
        trained = this.step.weights()
        if spec.method == "vanilla":
            painter.set_unet(trained)
        else:
            weights = lora.diffusers_weights(trained, spec.lora_alpha / spec.lora_rank)
            painter.set_lora(weights, 1.0)
        for index in range(worker.rank, len(spec.validation_prompts), worker.world):
            began = time.monotonic()
            prompt = spec.validation_prompts[index]
            request = sampling.Request(index + 1, 0, prompt, None, spec.seed)
            decoded = painter.paint(
                [request], steps=spec.validation_steps, guidance=spec.validation_guidance
            )[0]
            name = f"{layout.step_name(done)}-{index:02d}.png"
            told = {"line": index + 1, "image": 0, "step": done, "prompt": prompt}
            told |= {"seed": spec.seed, "worker": worker.rank}
            told |= {"seconds": round(time.monotonic() - began, 3)}
            outbox.picture(name, pictures.to_png(pictures.to_pixels(decoded)), told)
            outbox.beat(worker.rank)
            log.info("validation=%s prompt=%r", name, prompt)
