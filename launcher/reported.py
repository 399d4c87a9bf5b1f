"""Owns what a report takes from the store: a run's records, its pictures fetched and made small.

Must not know what a page looks like, nor where it is written.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import layout
from jobs.stores import Store
from launcher import contents, gallery, output, places, records, storage, trainingpage, transfer
from launcher.errors import NameTaken, NotFound
from launcher.meter import Meter
from launcher.settings import Settings

THUMBS = "thumbs"
SMALL = (320, 75)
"""Pixels of the longer side and JPEG's quality: sharp on a tile of 160 points of a dense screen; a
photograph is then about 17 kB."""
LARGE = (512, 85)
"""The same for a validation picture, which the page carries and shows large."""
ELSEWHERE = "--out names another folder"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run in its store, and what its records say first."""

    name: str
    store: Store
    spec: Row
    result: Row
    kind: str
    """`train` or `infer`."""
    pictures: tuple[Row, ...]
    """Rows of the committed pictures."""


def read(settings: Settings, name: str) -> Run:
    """Return a run that there is something to tell of.

    Raises:
        NotFound: there is none of that name, or nothing of it yet.
    """
    store = places.store_of(settings, name, "report")
    with storage.asking(store):
        spec = records.document(store, layout.key(name, layout.SPEC)).get("spec")
        spec = spec if isinstance(spec, dict) else {}
        result, pictures = records.result(store, name), tuple(records.pictures(store, name))
        logged = any(records.rows(store, layout.key(name, layout.METRICS)))
        if pictures or logged:
            kind = spec.get("kind") or result.get("kind")
            if kind not in ("train", "infer"):  # the spec is lost
                kind = "train" if logged else "infer"
            return Run(
                name=name, store=store, spec=spec, result=result, kind=kind, pictures=pictures
            )
        if not any(store.list(layout.key(name, ""))):
            raise NotFound(f"run {name!r}: no such run in {store.url}", "--store names another")
    raise NotFound(
        f"run {name!r}: has no committed picture and no logged step yet",
        f"launcher status {name} tells how far it is",
    )


def sampled(run: Run, folder: Path) -> gallery.Source:
    """Return a run that samples as its gallery shows it; its pictures are below `folder` then.

    Raises:
        NameTaken: another file lies in a picture's place.
        NotFound: a picture is not the one that was committed.
        OSError: the store, or the folder, failed.
    """
    rows, small = _pictures(run, folder, gallery.ordered(run.pictures), SMALL)
    asked = run.result.get("asked")
    if type(asked) is not int:
        asked = records.progress(run.store, run.name, run.spec).asked
    return gallery.Source(
        run=run.name,
        spec=run.spec,
        result=run.result,
        rows=rows,
        thumbs={file: path.relative_to(folder).as_posix() for file, path in small.items()},
        missing=max(0, (asked or 0) - len(rows)),
    )


def trained(run: Run, folder: Path) -> trainingpage.Source:
    """Return a run that trains as its page shows it; its pictures are below `folder` then.

    Raises:
        NameTaken, NotFound, OSError: as `sampled` does.
    """
    there = {entry.key: entry.modified for entry in run.store.list(layout.key(run.name, ""))}
    wanted = trainingpage.chosen(gallery.ordered(run.pictures))
    rows, small = _pictures(run, folder, wanted, LARGE)
    left = len(run.pictures) - len(rows)
    if left:
        output.say(f"{run.name}: {output.counted(left, 'more picture')} not on the page")
    commits = {
        step: modified
        for key, modified in there.items()
        if key.endswith(f"/{layout.COMMITTED}")
        and (step := layout.step_of(key.removesuffix(f"/{layout.COMMITTED}"))) is not None
    }
    record = records.document(run.store, layout.key(run.name, layout.SPEC))
    end = records.end(run.store, run.name)
    return trainingpage.Source(
        run=run.name,
        spec=run.spec,
        result=run.result,
        metrics=tuple(records.rows(run.store, layout.key(run.name, layout.METRICS))),
        pictures=[
            trainingpage.Picture(
                row=row,
                source=_inline(small.get(row["file"])),
                stored=there.get(layout.key(run.name, row["file"]), 0.0),
            )
            for row in rows
        ],
        commits=commits,
        about=_about(run, record, end, sorted(commits)),
        attempts=_attempts(record, end),
    )


def _attempts(record: Row, end: Row) -> Sequence[Row]:
    """Return what is known of each attempt: of all but the newest `spec.json` tells its end."""
    found = record.get("history")
    listed = found if isinstance(found, list) else []
    rows = [r for r in listed if isinstance(r, dict) and type(r.get("attempt")) is int]
    if rows and end and end["attempt"] == rows[-1]["attempt"]:
        rows[-1] |= {"code": end["code"], "reason": end["reason"], "ended": end.get("time")}
    return rows


def _about(run: Run, record: Row, end: Row, steps: Sequence[int]) -> Row:
    """Return what else the records tell: attempts, how it ended, checkpoints, versions."""
    told = {
        "state": "succeeded" if run.result and not end.get("code") else end.get("name"),
        "reason": end.get("reason"),
        "ended": end.get("time"),
        "attempts": record.get("attempts"),
        "checkpoints": ", ".join(map(str, steps)),
        "spec": str(record.get("sha256", ""))[:12],
    }
    for document in (record, end):
        versions = document.get("versions")
        told |= versions if isinstance(versions, dict) else {}
    return {key: value for key, value in told.items() if value not in (None, "")}


def _inline(path: Path | None) -> str | None:
    if path is None:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pictures(
    run: Run, folder: Path, wanted: Sequence[Row], size: tuple[int, int]
) -> tuple[list[Row], dict[str, Path]]:
    """Fetch the pictures that are not there yet, and make their thumbnails.

    Returns the rows of those there are, and file -> thumbnail, but for what is no picture.
    """
    if not wanted:
        return [], {}
    from launcher import thumbnails

    files = {str(row["file"]) for row in wanted}
    found = contents.items(run.store, run.name, [f"{layout.IMAGES}/*"])
    items = [item for item in found if item.path in files]
    small = {
        item.path: folder / THUMBS / f"{str(item.sha256)[:24]}{thumbnails.SUFFIX}" for item in items
    }
    try:
        plan = transfer.compare(run.store, run.name, folder, items)
    except NameTaken as error:
        raise NameTaken(error.text, ELSEWHERE) from error
    fresh = {item.path for item in plan.missing}
    with Meter("report", plan.bytes) as meter, thumbnails.Maker(*size) as maker:
        for item in items:
            if item.path not in fresh:
                maker.order(folder / item.path, small[item.path])

        def done(copied: transfer.Copied) -> None:
            maker.order(copied.target, small[copied.item.path])

        try:
            transfer.fetch(
                run.store, run.name, folder, plan.missing, progress=meter.moved, done=done
            )
        except NotFound as error:
            hint = "it was damaged or removed in the store, and has to be painted again"
            raise NotFound(error.text, hint) from error
        for path in maker.unreadable():
            output.say(f"{run.name}: {path.name} is no picture")
            small.pop(path.relative_to(folder).as_posix())
    told = f"{output.counted(len(items), 'picture')}, {len(fresh)} of them fetched, verified"
    output.say(f"{run.name}: {told}")
    there = {item.path for item in items}
    return [row for row in wanted if row["file"] in there], small
