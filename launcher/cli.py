"""Owns the verbs: parse, hand over, print. Must not decide, read records or act on the world.

`--help` and completion load this module, submit.py and options.py; each verb imports what it needs.
"""
# ruff: noqa: ARG001, D301  # flags are read from the context; \b is click's mark for "keep these lines"

# No `from __future__ import annotations`: Typer would evaluate some 80 texts at each start.

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from jobs import __version__
from jobs.errors import JobError
from launcher import options as o
from launcher import output, startup, stored, submit
from launcher.errors import LauncherError, Misconfigured

app = typer.Typer(pretty_exceptions_enable=False, **o.PLAIN)
app.add_typer(submit.app, name="submit")

INTERRUPTED = 130
# Typer brings its own copy of click in newer versions: its classes are reached through Typer's.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
_ClickException: type[Exception] = _UsageError.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; each planned failure is told here, once."""
    startup.collect_rarely()
    state = {"verbose": False}
    try:
        code = app(arguments, prog_name="launcher", standalone_mode=False, obj=state)
    except LauncherError as problem:
        return _told(problem, state)
    except JobError as error:
        return _told(Misconfigured(str(error)), state)
    except output.ReaderGone:
        return output.PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _ClickException as error:
        return _wrong_usage(error)
    return code if isinstance(code, int) else 0


def _told(problem: LauncherError, state: dict[str, bool]) -> int:
    code = output.failure(problem)
    cause = problem.__cause__
    told: list[BaseException] = []  # an exception may be its own cause
    while state["verbose"] and cause is not None and cause not in told:
        output.say(f"cause: {type(cause).__name__}: {' '.join(str(cause).split())}")
        told.append(cause)
        cause = cause.__cause__
    return code


def _wrong_usage(error: Any) -> int:
    """Tell what click found: one line and where the flags are listed, no frames."""
    where = error.ctx.command_path if getattr(error, "ctx", None) else "launcher"
    if type(error).__name__ == "NoArgsIsHelpError":
        output.say(error.ctx.get_help())
    else:
        output.error(error.format_message().rstrip("."), f"{where} --help lists the flags")
    return int(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.data(f"launcher {__version__}")
        raise typer.Exit


@app.callback()
def launcher(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", help="Tell what lies behind an error.")] = False,
) -> None:
    """Fine-tune and sample Stable Diffusion XL on Ascend NPUs, as Kubernetes Jobs.

    Data goes to stdout, everything else to stderr. Exit codes: 0; 2 usage; 66 no such run or file;
    69 unreachable; 70 the run failed; 73 name or file taken; 77 forbidden; 78 configuration; 130
    interrupted.

    \b
    launcher submit train --backend local --npus 2 --wait
    """
    ctx.obj["verbose"] = verbose


@app.command("list", cls=o.StoreAlone)
def list_(
    ctx: typer.Context,
    json: o.Json = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """List the runs, oldest first; with --store those that a store holds.

    --store alone is the store that is configured. --backend local lists this machine's runs.

    \b
    launcher list --backend local
    launcher list --store s3://bucket/prefix
    """
    from launcher import found, runs

    here = o.settings(ctx.params)
    elsewhere = here.target.backend != "local" or (store or "").startswith("s3://")
    if store is not None and (store == o.CONFIGURED or elsewhere):
        found.show(here, as_json=json)
    else:
        runs.show_all(here, as_json=json)


@app.command()
def status(
    ctx: typer.Context,
    run: o.Run,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again at each change, until the run ends: 0 or 70.")
    ] = False,
    json: o.Json = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Tell why a run waits and what to do, how far it is, or how it ended.

    \b
    launcher status first --watch
    launcher status first --json
    """
    from launcher import runs

    runs.show(o.settings(ctx.params), run, as_json=json, watch=watch)


@app.command()
def logs(
    ctx: typer.Context,
    run: o.Run,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow; end with 70 if the run fails.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(metavar="R", min=0, help="Only the lines of this worker.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only lines of the last 90m, 8h, 7d, ...")
    ] = None,
    tail: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Begin with the last N lines, per node.")
    ] = None,
    grep: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Only lines that match.")
    ] = None,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Print a run's log: all its pods, attempts and workers, gone ones from the store.

    Followed, it waits for the pods, goes on in those that replace them, and ends with the run.

    \b
    launcher logs first -f --tail 20
    launcher logs first --rank 0 --since 2h --grep loss=
    """
    from launcher import logs as logs_

    choice = logs_.choose(rank=rank, since=since, tail=tail, grep=grep)
    logs_.show(o.settings(ctx.params), run, choice, follow=follow)


@app.command()
def cancel(
    ctx: typer.Context,
    run: o.Run,
    now: Annotated[
        bool, typer.Option("--now", help="Kill it, without letting it save its work.")
    ] = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    config: o.Config = None,
) -> None:
    """Stop a run; it commits a checkpoint first, and can be resumed.

    \b
    launcher cancel first
    """
    from launcher import runs

    runs.cancel(o.settings(ctx.params), run, now=now)


app.command()(stored.fetch)
app.command()(stored.push)
app.command()(stored.report)
app.add_typer(stored.ckpt, name="ckpt")
app.add_typer(stored.cache, name="cache")


@app.command()
def doctor(
    ctx: typer.Context,
    pod: Annotated[
        bool, typer.Option("--pod", help="Try the store from a short pod of the cluster, too.")
    ] = False,
    json: o.Json = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    image: o.Image = None,
    server: o.Server = None,
    config: o.Config = None,
) -> None:
    """Look at all that a run needs of cluster and store, and tell what is wrong.

    Each line is ok, warn or fail, with the fix. With --backend local, or where there is no
    kubeconfig, only the store is tried. A probe is written and removed again.

    \b
    launcher doctor --pod
    launcher doctor --backend local --store s3://bucket/prefix
    """
    from launcher.doctors import doctor as doctor_

    doctor_.examine(o.settings(ctx.params), pod=pod, as_json=json)


@app.command("config")
def config_(
    ctx: typer.Context,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented launcher.toml of the defaults.")
    ] = False,
    method: Annotated[
        o.Method | None, typer.Option(help="Print the spec that this method leads to, too.")
    ] = None,
    json: o.Json = False,
    backend: o.Backend = None,
    context: o.Context = None,
    namespace: o.Namespace = None,
    store: o.Store = None,
    image: o.Image = None,
    server: o.Server = None,
    config: o.Config = None,
) -> None:
    """Print each setting with where it comes from.

    \b
    launcher config --example > launcher.toml
    launcher config --method lora
    """
    from launcher import configuration

    if example:
        configuration.print_example()
    else:
        configuration.show(o.settings(ctx.params), method, as_json=json)


startup.spare_untyped_values()

if __name__ == "__main__":
    sys.exit(main())
