"""Owns the flags of `launcher submit train|infer`; what they do is submission.py's.

Imported for `--help` and completion: must not load pydantic, yaml or a client.
"""
# ruff: noqa: ARG001, D301  # flags are read from the context; \b is click's mark for "keep these lines"

# No `from __future__ import annotations`: Typer would evaluate some 80 texts at each start.

from pathlib import Path
from typing import Annotated

import typer

from launcher import options as o

app = typer.Typer(**o.PLAIN, help="Submit a run; its name is printed on stdout.")


@app.command("train")
def train(
    ctx: typer.Context,
    method: Annotated[
        o.Method | None, typer.Option(help="What is trained: UNet, LoRA on it, LoRA on all.")
    ] = None,
    precision: o.Precision = None,
    model: o.Model = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Image folder, parquet file, s3:// address, hub id, tiny or tiny-hatched."
        ),
    ] = None,
    vae: o.Vae = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    learning_rate: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    resolution: Annotated[int | None, typer.Option(help="Side of a picture in pixels.")] = None,
    lora_rank: o.Rank = None,
    save_every: o.SaveEvery = None,
    seed: o.Seed = None,
    validation_prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Prompt painted at the end; repeatable."),
    ] = None,
    fork: o.Fork = None,
    spec: o.Spec = None,
    set_: o.Set = None,
    npus: o.Npus = 1,
    nodes: o.Nodes = 1,
    queue: o.Queue = None,
    queue_engine: o.QueueEngine = None,
    priority_class: o.Priority = None,
    max_duration: o.MaxDuration = None,
    ttl: o.Ttl = None,
    name: o.Name = None,
    dry_run: o.DryRun = False,
    form: o.Form = "yaml",
    wait: o.Wait = False,
    idempotent: o.Idempotent = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    image: o.Image = None,
    server: o.Server = None,
    config: o.Config = None,
) -> None:
    """Fine-tune a model on captioned pictures.

    \b
    launcher submit train --npus 8 --method lora --data YaYaB/onepiece-blip-captions
    launcher submit train --backend local --set save_every=10 --name first --wait
    """
    from launcher import submission

    submission.submit("train", ctx.params)


@app.command("infer")
def infer(
    ctx: typer.Context,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="One prompt a line, or .jsonl, one object; - is standard input."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="LINES", help="Paint these lines of it, as 17,40-42; the same bytes."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Paint this picture of a run again.")
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[@STEP][:WEIGHT]", help="LoRA to paint with: a run's, FILE or s3://FILE."
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(help="Pictures per prompt.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps per picture.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    scheduler: o.Scheduler = None,
    seed: o.Seed = None,
    model: o.Model = None,
    precision: o.Precision = None,
    spec: o.Spec = None,
    set_: o.Set = None,
    npus: o.Npus = 1,
    nodes: o.Nodes = 1,
    queue: o.Queue = None,
    queue_engine: o.QueueEngine = None,
    priority_class: o.Priority = None,
    max_duration: o.MaxDuration = None,
    ttl: o.Ttl = None,
    name: o.Name = None,
    dry_run: o.DryRun = False,
    form: o.Form = "yaml",
    wait: o.Wait = False,
    idempotent: o.Idempotent = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    image: o.Image = None,
    server: o.Server = None,
    config: o.Config = None,
) -> None:
    """Paint every prompt of a file.

    \b
    launcher submit infer --prompts prompts/onepiece.txt --npus 8 --images 4
    launcher submit infer --backend local --prompts prompts/tiny.txt --lora first@60:0.8 --wait
    launcher submit infer --backend local --like images/00017-00.png
    """
    from launcher import submission

    submission.submit("infer", ctx.params)
