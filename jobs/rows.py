"""Owns the picture manifest of a run in the store, written by one node or by several.

Must not know what a row tells but its line and image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from jobs import commits, layout
from jobs.outbox import write_whole
from jobs.stores import Conflict, Store


def known_rows(store: Store, run: str) -> list[str]:
    """Return the rows of the pictures that are committed.

    Raises:
        OSError: the store is away.
    """
    try:
        return store.read(layout.key(run, layout.PICTURES)).decode().splitlines()
    except FileNotFoundError:
        return []


def write(store: Store, run: str, rows: Iterable[str]) -> None:
    """Write the manifest; nobody else writes to it.

    Raises:
        OSError: the store failed, or holds something else afterwards.
    """
    key = layout.key(run, layout.PICTURES)
    proof = store.write(key, _body(rows))
    commits.compare(store, key, {key: proof})


def merge(store: Store, run: str, rows: Iterable[str]) -> list[str]:
    """Add rows to a manifest that other nodes write to as well; return all that it holds.

    Raises:
        OSError: the store failed, or another node was quicker: the same call again goes on.
    """
    key = layout.key(run, layout.PICTURES)
    try:
        old: bytes | None = store.read(key)
    except FileNotFoundError:
        old = None
    there = old.decode().splitlines() if old else []
    merged = list(dict.fromkeys([*there, *rows]))
    if merged != there:
        try:
            store.swap(key, old, _body(merged))
        except Conflict as error:
            raise OSError(f"{key}: was just written by another node") from error
    return merged


def tell_upload(result: Path, seconds: float) -> None:
    """Add the time of the pictures' uploads to where a run's time went: its result's `split_s`."""
    row = json.loads(result.read_bytes())
    if "split_s" in row:
        row["split_s"]["upload"] = round(seconds, 2)
        write_whole(result, json.dumps(row, indent=1).encode())


def _body(rows: Iterable[str]) -> bytes:
    """Return the rows by line and image, JSON lines."""
    parsed = [(json.loads(text), text) for text in rows]
    parsed.sort(key=lambda pair: (pair[0]["line"], pair[0]["image"]))
    return ("\n".join(text for _, text in parsed) + "\n").encode()
