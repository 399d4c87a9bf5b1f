"""The inference worker, top to bottom in the order of execution.

Must not talk to the store but to read prompts, the LoRA and the compile cache: pictures go to
the outbox.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs import batches, graphs, layout, lora, lorasource, model, recipes, sampling
from jobs.batches import Batch
from jobs.developing import Developer
from jobs.environment import Environment, Worker
from jobs.errors import BadData, BadSpec, Stopped
from jobs.msrun import SUPERVISOR
from jobs.outbox import Outbox
from jobs.painting import Session, paint, summary
from jobs.prompts import from_json_lines
from jobs.rows import known_rows
from jobs.specs import InferSpec, PromptRow
from jobs.stores import Store, open_store

log = logging.getLogger("jobs.infer")

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
STAGED = ("model", "model_config_from", "vae", "lora")
"""Keys of the spec that name files."""
SHOWN = 20
"""Lines that one log line names."""


def run(env: Environment, spec: InferSpec, worker: Worker) -> None:
    """Paint this worker's batches of the plan until all are handed over, or a stop.

    Raises:
        JobError: see jobs.errors.
    """
    outbox, store = Outbox(env.work), open_store(env.store, env.access)
    kind = model.dtype(spec.precision, env.device)
    folder = model.locate(
        spec.model, spec.model_revision, env,
        config_from=spec.model_config_from, vae=spec.vae, vae_revision=spec.vae_revision,
    )  # fmt: skip
    rows = prompts(spec, store)
    plan = batches.plan(rows, spec)
    # Several nodes paint each on its own, with ranks that begin at 0 on each.
    place = Worker(env.index * worker.world + worker.rank, env.nodes * worker.world)
    mine = batches.share(plan, place.rank, place.world)
    shapes = batches.sizes(mine) or [(spec.width, spec.height)]
    width, height = shapes[0]
    painter = sampling.Painter(folder, kind, width=width, height=height, batch=spec.batch_size)
    painter.prediction = spec.prediction_type
    step = merge_lora(painter, spec, store, env) if spec.lora else None
    check_settings(painter, mine)
    cut = tell_cut(painter, rows, spec)
    asked = sum(len(batch.pictures) for batch in plan)
    log.info("prompts=%d pictures=%d batches=%d mine=%d", len(rows), asked, len(plan), len(mine))
    given = recipes.recipe({}, as_submitted(store, env.run, spec), step)
    done = already_done(store, env)
    left = [batch for batch in (b.without(done) for b in mine) if batch.pictures]

    start_s, began = age(), time.monotonic()
    constants: dict[str, object] = {"precision": spec.precision, "batch_size": spec.batch_size}
    constants |= {part: model.config(folder, part) for part in PARTS}
    cache = graphs.open_cache("infer", env, worker, {**constants, "sizes": shapes})
    painter.compile(shapes, texts=True)
    cache.publish()
    compile_s = time.monotonic() - began
    told = (compile_s, 2 * len(shapes) + 1, " ".join(f"{w}x{h}" for w, h in shapes))
    log.info("compile_s=%.1f graphs=%d sizes=%s", *told)

    developer = Developer(outbox, 2 * spec.batch_size)
    session = Session(painter, spec, outbox, worker, place.rank, developer, given)
    began, count = time.monotonic(), sum(len(batch.pictures) for batch in left)
    try:
        for batch in left:
            if outbox.stop.exists():
                raise Stopped("stopped between two batches")
            paint(session, batch)
            log.info("painted=%d of=%d workers=%d", session.painted, count, place.world)
    finally:
        session.developer.finish()
    seconds = time.monotonic() - began
    times = {"start_s": start_s, "compile_s": compile_s, "seconds": seconds}
    before = sum(len(batch.pictures) for batch in mine) - count
    counts = {"asked": asked, "before": before, "cut": cut}
    outbox.summarise(worker.rank, {**summary(session), **times, **counts})


def age() -> float:
    """Return how long ago this attempt began, in seconds: its supervisor, or else this process."""
    pid = os.environ.get(SUPERVISOR, "self")
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def merge_lora(
    painter: sampling.Painter, spec: InferSpec, store: Store, env: Environment
) -> int | None:
    """Merge the LoRA that the spec names, and return its step, if a run has trained it.

    Raises:
        BadSpec, BadData: there is none, it is damaged, or it does not fit the model.
    """
    source = lorasource.find(spec, store, env)
    weights = lora.read(source.path, source.what)
    count = painter.set_lora(weights, spec.lora_weight, source.what)
    painter.prediction = painter.prediction or source.prediction
    told = (source.what.removeprefix("lora "), source.step, spec.lora_weight, count)
    log.info("lora=%s step=%s weight=%g modules=%d", *told)
    return source.step


def check_settings(painter: sampling.Painter, mine: Sequence[Batch]) -> None:
    """Make sure of every sampler and size before minutes are spent on compiling.

    Raises:
        BadSpec: a scheduler does not fit the model, or a size is no multiple of its latents'.
    """
    for scheduler, steps in dict.fromkeys((batch.scheduler, batch.steps) for batch in mine):
        painter.table(scheduler, steps)
    for width, height in batches.sizes(mine):
        if width % painter.factor or height % painter.factor:
            raise BadSpec(f"size {width}x{height}: this model wants multiples of {painter.factor}")


def tell_cut(painter: sampling.Painter, rows: Iterable[PromptRow], spec: InferSpec) -> int:
    """Count the prompts whose end the encoders do not read, and warn of them."""
    # A token is a byte at least, and two are taken by the marks of beginning and end.
    texts = [(row.line, text) for row in rows for text in (row.prompt, row.negative) if text]
    texts += [(0, spec.negative)] if spec.negative else []
    long = [pair for pair in texts if len(pair[1].encode()) > model.TOKENS - 2]
    lines = sorted({line for line, text in long if painter.cuts(text)})
    if lines:
        shown = ", ".join("all" if line == 0 else str(line) for line in lines[:SHOWN])
        more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        log.warning("cut=%d prompts after %d tokens: lines %s%s", len(lines), model.TOKENS, shown,
                    more)  # fmt: skip
    return len(lines)


def as_submitted(store: Store, run: str, spec: InferSpec) -> InferSpec:
    """Return the spec with what it was given to name files: here it may name this node's copies."""
    try:
        found = json.loads(store.read(layout.key(run, layout.SPEC)))["spec"]
        return spec.model_copy(update={key: found[key] for key in STAGED if key in found})
    except (OSError, ValueError, KeyError, TypeError):
        return spec


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
    return from_json_lines(raw, f"prompts {spec.prompts.key}")


def already_done(store: Store, env: Environment) -> set[tuple[int, int]]:
    """Return (line, image) of every picture that an earlier attempt of this node has committed."""
    found = map(json.loads, known_rows(store, env.run, env.node))
    return {(row["line"], row["image"]) for row in found}
