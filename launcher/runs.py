"""Owns the verbs on runs of this machine: list, status, logs, cancel. State and records -> words.

Must not decide where a run is (places.py); what is a cluster's goes to clusterruns.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from jobs.errors import BY_CODE
from jobs.stores import FileStore
from launcher import output, places, progress, records, redraw, storage
from launcher.backends import RunState, local, localrun
from launcher.backends.localrun import Files, Record
from launcher.errors import (
    Forbidden,
    LauncherError,
    Misconfigured,
    NotFound,
    RunFailed,
    Unreachable,
)  # fmt: skip
from launcher.records import Progress
from launcher.settings import Settings

WATCH_SECONDS = 1
LINE_BYTES = 500
"""Of a log's newest line that are told; a terminal has no room for more."""


def show_all(settings: Settings, *, as_json: bool) -> None:
    """Print every run, oldest first."""
    root = places.all_here(settings)
    if root is None:
        _clusterruns().show_all(settings, as_json=as_json)
        return
    found = []
    for files in localrun.everyone(root):
        try:
            found.append(described(files))
        except (
            NotFound,
            Misconfigured,
        ) as error:  # removed meanwhile, or damaged: one broken record must not hide the other runs
            output.say(f"skipped: {error.text}")
    found.sort(key=lambda row: (row["submitted"], row["run"]))
    if as_json:
        output.as_json(found)
    elif found:
        rows = [
            (row["run"], row["kind"], row["state"], how_far(row, brief=True), row["submitted"])
            for row in found
        ]
        output.data(output.table(("RUN", "KIND", "STATE", "PROGRESS", "SUBMITTED"), rows))
    else:
        output.say(f"no runs in {root}")


def _clusterruns() -> Any:
    """Return the module of a cluster's runs, which brings more than this machine's runs need."""
    from launcher import clusterruns

    return clusterruns


def show(settings: Settings, run: str, *, as_json: bool, watch: bool = False) -> None:
    """Print what is known of a run; watching, again at each change until it ends.

    Raises:
        RunFailed: the run that was watched did not succeed.
    """
    files = places.here(settings, run)
    if files is None:
        _clusterruns().show(settings, run, as_json=as_json, watch=watch)
    elif watch:
        _watch_status(files, as_json=as_json)
    else:
        _print(described(files), as_json=as_json)


def _watch_status(files: Files, *, as_json: bool) -> None:
    last = None
    while True:
        row = described(files)
        steady = {**row, "seconds_left": None}
        if steady != last:
            redraw.show(row if as_json else _text(row), first=last is None)
            last = steady
        if row["state"] != "running":
            break
        time.sleep(WATCH_SECONDS)
    _raise_failure(localrun.look(files))


def _print(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.as_json(row)
    else:
        output.data(_text(row))


def _text(row: dict[str, Any]) -> str:
    code = row["code"]
    state = row["state"] if code is None else f"{row['state']} ({code}, {row['code_name']})"
    if row["state"] == "interrupted":
        state += " (the same submission goes on from the last commit)"
    lines = {
        "run": row["run"],
        "kind": row["kind"],
        "state": state,
        "reason": row["reason"],
        "progress": how_far(row),
        "log": row["log"],
        "committed": "" if row["committed"] is None else f"step {row['committed']}",
        "attempts": "" if row["attempts"] is None else str(row["attempts"]),
        "submitted": row["submitted"],
        "records": row["records"],
    }
    return "\n".join(f"{key:<11}{value}" for key, value in lines.items() if value)


def watch(files: Files, offset: int, write: Callable[[bytes], None], flags: str) -> None:
    """Follow a run's log until it ends, and tell how it ended.

    Args:
        files: the run.
        offset: where in the log to begin, in bytes.
        write: takes the log.
        flags: what another verb needs to find the run, with a blank before.

    Raises:
        RunFailed: it did not succeed.
        KeyboardInterrupt: the person went away; the run goes on.
    """
    name = files.run.name
    try:
        for chunk in localrun.log(files, offset, follow=True):
            write(chunk)
    except KeyboardInterrupt:
        if localrun.alive(files):
            output.say(
                f"\n{name} goes on: `launcher logs {name} -f{flags}` follows it,"
                f" `launcher cancel {name}{flags}` ends it"
            )
        raise
    _raise_failure(localrun.look(files))
    row = _result(files)
    numbers = " ".join(f"{key}={value}" for key, value in row.items() if key in _RESULT)
    output.say(f"{name}: succeeded {numbers}".rstrip())


def _raise_failure(state: RunState) -> None:
    if state.state != "succeeded":
        hint = f"the same submission with --name {state.name} goes on from its last commit"
        text = f"run {state.name!r}: {_how_it_ended(state)}"
        raise RunFailed(text, hint if state.resumable else "")


def _result(files: Files) -> dict[str, Any]:
    store = places.records_of(files, localrun.read(files))
    with suppress(Unreachable, Forbidden), storage.asking(store):  # it has been away, then
        return records.result(store, files.run.name)
    return {}


def cancel(settings: Settings, run: str, *, now: bool) -> None:
    """Stop a run, wait for its end and tell how it ended."""
    files = places.here(settings, run)
    if files is None:
        _clusterruns().cancel(settings, run, now=now)
        return
    living = localrun.alive(files)
    if living:
        output.say(f"{run}: " + ("killing it" if now else "stopping; it commits what it has first"))
    if local.cancel(files, now=now) and not living:
        output.say(f"{run}: killed what its supervisor left behind")
    output.say(f"{run}: {_how_it_ended(localrun.look(files))}")


_RESULT = ("steps", "loss", "ms_per_step", "img_s", "compile_s", "s_per_picture", "pictures")


def described(files: Files) -> dict[str, Any]:
    """Return state and progress of a local run as plain values."""
    record = localrun.read(files)
    state = localrun.look(files)
    known = _progress(files, record)
    row = BY_CODE.get(state.code) if state.code is not None else None
    # What is left means nothing once nobody works on it.
    left = known.seconds_left if state.state == "running" else None
    store = places.records_of(files, record)
    return {
        "run": state.name,
        "kind": state.kind,
        "state": state.state,
        "code": state.code,
        "code_name": row.name if row else None,
        "reason": state.reason,
        "resumable": state.resumable,
        "submitted": state.submitted,
        "workers": record.workers,
        # Compiling takes minutes, and no record tells of it.
        "log": _newest_line(files) if state.state == "running" else "",
        **asdict(known),
        "seconds_left": left,
        "records": f"{store.url}/{state.name}" if storage.remote(store.url) else str(files.run),
    }


def _newest_line(files: Files) -> str:
    """Return the last line of the run's log, or its end; empty if there is none."""
    with suppress(FileNotFoundError), files.console.open("rb") as log:
        log.seek(-min(log.seek(0, os.SEEK_END), LINE_BYTES), os.SEEK_END)
        line = log.read().decode(errors="replace").rstrip("\n").rpartition("\n")[2]
        return output.printable(line)
    return ""


def _progress(files: Files, record: Record) -> Progress:
    """Return what the records tell; an object store that is away is told and hides no state."""
    store = places.records_of(files, record)
    if isinstance(store, FileStore):
        return records.progress(store, record.name, record.spec())
    try:
        with storage.asking(store):
            return records.progress(store, record.name, record.spec())
    except LauncherError as error:
        if not isinstance(error.__cause__, OSError):
            raise  # a record is damaged
        output.say(f"{record.name}: {error.text}")
        return Progress()


def how_far(row: dict[str, Any], *, brief: bool = False) -> str:
    """Return the progress of a run for people."""
    known = Progress(**{key: row[key] for key in Progress.__dataclass_fields__})
    return progress.words(str(row["kind"]), known, brief=brief)


def _how_it_ended(state: RunState) -> str:
    if state.state == "running":
        return "running"
    if state.code is None:
        return "interrupted: it ended before it could say why"
    return f"{state.state} ({state.code}): {state.reason}"
