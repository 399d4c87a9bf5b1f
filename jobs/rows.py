"""Owns the picture manifest of a run in the store, written by one node or by several.

Each of several nodes writes its own rows where nobody else writes, and the manifest is made of all
of them, again and again: so no row is lost on a store without conditional writes. Must not know
what a row tells but its line and image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from jobs import commits, layout
from jobs.outbox import write_whole
from jobs.stores import Store


def known_rows(store: Store, run: str, node: int | None = None) -> list[str]:
    """Return the rows of the pictures that are committed, by all nodes or by one.

    Raises:
        OSError: the store is away.
    """
    try:
        return store.read(layout.node_key(run, node, layout.PICTURES)).decode().splitlines()
    except FileNotFoundError:
        return []


def write(store: Store, run: str, rows: Iterable[str], node: int | None = None) -> None:
    """Write the manifest of the only node, or a node's own rows; nobody else writes to it.

    Raises:
        OSError: the store failed, or holds something else afterwards.
    """
    key = layout.node_key(run, node, layout.PICTURES)
    proof = store.write(key, _body(rows))
    commits.compare(store, key, {key: proof})


def gather(store: Store, run: str) -> list[str]:
    """Make the manifest of all nodes' own rows, and return it.

    Another node may do the same at the same moment, and may know less: the last one to end, who
    is followed by nobody, knows all.

    Raises:
        OSError: the store failed.
    """
    prefix = layout.key(run, layout.NODES, "")
    keys = [e.key for e in store.list(prefix) if e.key.endswith(f"/{layout.PICTURES}")]
    rows = list(dict.fromkeys(row for key in keys for row in store.read(key).decode().splitlines()))
    store.write(layout.key(run, layout.PICTURES), _body(rows))
    return rows


def tell_upload(record: Path, seconds: float) -> None:
    """Add the time of the pictures' uploads to where a run's time went: `split_s` of its result.

    A node's part of a run keeps it for the result.
    """
    row = json.loads(record.read_bytes())
    if record.name == layout.PART:
        row["upload_s"] = round(seconds, 2)
    elif "split_s" in row:
        row["split_s"]["upload"] = round(seconds, 2)
    else:
        return
    write_whole(record, json.dumps(row, indent=1).encode())


def _body(rows: Iterable[str]) -> bytes:
    """Return the rows by line and image, JSON lines."""
    parsed = [(json.loads(text), text) for text in rows]
    parsed.sort(key=lambda pair: (pair[0]["line"], pair[0]["image"]))
    return "".join(f"{text}\n" for _, text in parsed).encode()
