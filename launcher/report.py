"""Owns the verb `report`: a run's records in the store -> a folder with a page for the browser.

Must not know how a page looks (gallery.py, trainingpage.py, pages/) nor ask a cluster: the run's
Job may be gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from jobs import __version__
from jobs.stores import PART
from launcher import data, gallery, output, places, reported, templates, trainingpage
from launcher.errors import NameTaken, Usage
from launcher.meter import GOES_ON
from launcher.reported import ELSEWHERE, Run
from launcher.settings import Settings

PAGE = "index.html"
DATA = "data.js"
MARK = "report.json"
"""Says whose report a folder holds, so that no other one is written into it."""


def report(settings: Settings, names: Sequence[str], out: Path | None) -> None:
    """Write the report of one run, or of two side by side; the page's path goes to stdout.

    Args:
        settings: where to look.
        names: the runs.
        out: the folder; none means `report-RUN` (or `report-RUN-RUN`) here.

    Raises:
        Usage: more than two runs, one twice, or two of different kinds.
        NotFound: there is no such run, or nothing of it yet; or a picture is not the one that was
            committed.
        NameTaken: the folder holds something else.
        LauncherError: the store or the folder failed.
    """
    if len(names) > 2 or len(set(names)) != len(names):
        raise Usage(f"report {' '.join(names)}: one run, or two different ones")
    folder = out or Path(f"report-{'-'.join(map(places.legal, names))}")
    runs = [reported.read(settings, name) for name in names]
    kinds = {run.kind for run in runs}
    if len(kinds) > 1:
        told = " and ".join(f"{run.name} ({run.kind})" for run in runs)
        raise Usage(f"report {told}: two runs of one kind can be compared")
    try:
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(data.between(run.store, folder))
            _take(folder, kinds.pop(), names)
            (_gallery if runs[0].kind == "infer" else _training)(runs, folder)
    except KeyboardInterrupt:
        output.say(GOES_ON)
        raise
    output.data(str(folder / PAGE))


def _take(folder: Path, kind: str, names: Sequence[str]) -> None:
    """Make sure that the folder is this report's, from now on.

    Raises:
        NameTaken: it holds something else.
    """
    mark = {"kind": kind, "runs": list(names)}
    if folder.exists() and not folder.is_dir():
        raise NameTaken(f"{folder}: is a file, not a folder", ELSEWHERE)
    try:
        found = json.loads((folder / MARK).read_bytes())
    except FileNotFoundError:
        found = None
    except ValueError:
        found = {}
    if found is None and not (folder.is_dir() and any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / MARK, json.dumps(mark))
        return
    if found != mark:
        runs = found.get("runs") if isinstance(found, dict) else None
        what = f"the report of {' and '.join(map(str, runs))}" if runs else "something else"
        raise NameTaken(f"folder {folder}: holds {what}", ELSEWHERE)


def _gallery(runs: Sequence[Run], folder: Path) -> None:
    sources = [reported.sampled(run, folder / run.name) for run in runs]
    document = templates.script_json(gallery.data(sources))
    _write(folder / DATA, f"window.report = {document};\n")
    # The page comes last: where it is there, all that it names is.
    values = {"title": _title(runs), "version": __version__}
    _write(folder / PAGE, templates.page("gallery.html", values))


def _training(runs: Sequence[Run], folder: Path) -> None:
    document = trainingpage.data([reported.trained(run, folder / run.name) for run in runs])
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    values = {"title": _title(runs), "version": __version__, "written": written}
    _write(folder / PAGE, templates.page("training.html", values, {"report": document}))


def _title(runs: Sequence[Run]) -> str:
    return " and ".join(run.name for run in runs)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{PART}{path.name}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
