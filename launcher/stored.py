"""Owns the flags of the verbs on what is stored, from fetch to cache; not what they do.

Imported for `--help` and completion: must not load pydantic, boto3, yaml or a client.
"""
# ruff: noqa: ARG001, D301  # flags are read from the context; \b is click's mark for "keep these lines"

# No `from __future__ import annotations`: Typer would evaluate some 80 texts at each start.

from pathlib import Path
from typing import Annotated

import typer

from launcher import options as o

ckpt = typer.Typer(**o.PLAIN, help="Look at, check, keep and remove the checkpoints of a run.")
cache = typer.Typer(**o.PLAIN, help="Look at and clear what the runs of a store share.")

Step = Annotated[int, typer.Argument(metavar="STEP", min=1, help="Step of the checkpoint.")]


def fetch(
    ctx: typer.Context,
    run: o.Run,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to copy into.")],
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only paths that match; repeatable."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what is committed until the run has ended.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(metavar="STEP", min=1, help="This checkpoint, not the newest.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace other files that lie there already.")
    ] = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Copy the results of a run, each file verified: newest checkpoint, pictures, records.

    What is there whole is skipped, and an interrupted copy goes on. Logs come when --include asks.

    \b
    launcher fetch first results --include 'images/*' --watch
    launcher fetch first results --include 'logs/*'
    """
    from launcher import data

    data.fetch(
        o.settings(ctx.params), run, folder, include or [], force=force, watch=watch, step=step
    )


def push(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to upload.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to: s3://bucket/prefix/name.")],
    config: o.Config = None,
) -> None:
    """Upload a folder, such as a model or a data set, as a committed set of files.

    Its URL is printed, for --model, --data or a spec. An interrupted upload goes on.

    \b
    launcher push ./my-pictures s3://bucket/data/my-pictures
    """
    from launcher import data

    data.upload(o.settings(ctx.params), folder, url)


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN [RUN]", help="Name of the run; of two to compare.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; report-RUN if left out.")
    ] = None,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Write a page about a run, or about two: the gallery of its pictures, or its training curves.

    It needs no network to be looked at, and its path is printed. The same call again adds what is
    new.

    \b
    launcher report first
    launcher report before after --out compared
    """
    from launcher import report as report_

    report_.report(o.settings(ctx.params), runs, out)


@ckpt.command("list")
def list_(
    ctx: typer.Context,
    run: o.Run,
    json: o.Json = False,
    backend: o.Backend = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """List the committed checkpoints of a run.

    \b
    launcher ckpt list first
    """
    from launcher import checkpoints

    checkpoints.show(o.settings(ctx.params), run, as_json=json)


@ckpt.command()
def verify(
    ctx: typer.Context,
    run: o.Run,
    step: Annotated[
        int | None, typer.Option(metavar="STEP", min=1, help="Only this one; all when left out.")
    ] = None,
    backend: o.Backend = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Read checkpoints back and compare every file; 66 and its name if one is damaged.

    \b
    launcher ckpt verify first --step 500
    """
    from launcher import checkpoints

    checkpoints.verify(o.settings(ctx.params), run, step)


@ckpt.command()
def pin(
    ctx: typer.Context,
    run: o.Run,
    step: Step,
    off: Annotated[bool, typer.Option("--off", help="Leave it to retention again.")] = False,
    backend: o.Backend = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Keep a checkpoint from retention and prune.

    \b
    launcher ckpt pin first 500
    """
    from launcher import checkpoints

    checkpoints.pin(o.settings(ctx.params), run, step, on=not off)


@ckpt.command()
def prune(
    ctx: typer.Context,
    run: o.Run,
    keep_last: Annotated[
        int,
        typer.Option(metavar="K", min=0, help="Checkpoints that stay, the newest; 0 keeps all."),
    ] = 0,
    keep_every: Annotated[
        int, typer.Option(metavar="N", min=0, help="Multiples of this step stay as well.")
    ] = 0,
    older_than: Annotated[
        float,
        typer.Option(
            metavar="HOURS", min=0, help="Rest after which what was never committed may go."
        ),
    ] = 24,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; else they are listed.")] = False,
    backend: o.Backend = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Remove old checkpoints, and what interrupted uploads left; never the newest or a pinned one.

    \b
    launcher ckpt prune first --keep-last 3 --keep-every 1000
    launcher ckpt prune first --keep-last 3 --keep-every 1000 --yes
    """
    from launcher import checkpoints

    checkpoints.prune(
        o.settings(ctx.params),
        run,
        keep_last=keep_last,
        keep_every=keep_every,
        older_than_hours=older_than,
        yes=yes,
    )


@cache.command("list")
def cache_list(
    ctx: typer.Context,
    json: o.Json = False,
    backend: o.Backend = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Tell how much the compiled graphs and the encoded pictures in the store take.

    \b
    launcher cache list --store s3://bucket/prefix
    """
    from launcher import caches

    caches.show(o.settings(ctx.params), as_json=json)


@cache.command("prune")
def cache_prune(
    ctx: typer.Context,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="Only what was made longer ago, such as 30d.")
    ] = "30d",
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; else they are listed.")] = False,
    backend: o.Backend = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Remove compiled graphs and encoded pictures; a run that needs them makes them anew.

    \b
    launcher cache prune --older-than 30d
    launcher cache prune --older-than 30d --yes
    """
    from launcher import caches, durations

    seconds = durations.seconds(older_than, "--older-than", least=0)
    caches.prune(o.settings(ctx.params), older_than_seconds=seconds, yes=yes)
