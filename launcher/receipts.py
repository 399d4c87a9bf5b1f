"""Owns the memory of earlier transfers, in the user's cache; losing it costs work, never data.

Must not decide what is transferred.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.stores import Stored
from launcher import storage


class Receipts:
    """What was fetched into a folder before: path -> SHA-256 of the records of a run.

    A run that goes on replaces its records; whoever fetches again gets the newer ones without
    --force, and a file that somebody else put there is still not replaced.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._path = _path("fetched", f"{folder.absolute()}\0{run}")
        known = _load(self._path)
        self.files: dict[str, str] = {k: v for k, v in known.items() if isinstance(v, str)}

    def save(self) -> None:
        """Keep them."""
        if self.files:
            _save(self._path, self.files)


class Sent:
    """Which files of a folder a store has proven to hold, for a push that was interrupted.

    A row counts only for the file as it was (size, time of change); a line a file, appended, so
    that a push that is killed loses none.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._path = _path("pushed", f"{folder.absolute()}\0{url}").with_suffix(".jsonl")
        self._lock = threading.Lock()
        self._rows: dict[str, list[Any]] = {}
        with suppress(OSError):
            for line in self._path.read_bytes().splitlines():
                with suppress(ValueError, TypeError):
                    name, *row = json.loads(line)
                    self._rows[name] = row

    def proof(self, name: str, facts: os.stat_result) -> Stored | None:
        """Return what the store proved of the file, if it is still the same."""
        match self._rows.get(name):
            case [int(size), int(changed), str(sha256), str(tag)]:
                if (size, changed) == (facts.st_size, facts.st_mtime_ns):
                    return Stored(size, sha256, tag)
        return None

    def add(self, name: str, facts: os.stat_result, stored: Stored) -> None:
        """Remember a file, from any thread."""
        row = [name, facts.st_size, facts.st_mtime_ns, stored.sha256, stored.tag]
        with self._lock, suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def forget(self) -> None:
        """Drop all rows: the set is committed."""
        with suppress(OSError):
            self._path.unlink()


def _path(kind: str, name: str) -> Path:
    return storage.cache(kind) / f"{storage.digest(name)}.json"


def _load(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        known = json.loads(path.read_bytes())
        return known if isinstance(known, dict) else {}
    return {}


def _save(path: Path, document: object) -> None:
    with suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(document), encoding="utf-8")
        draft.replace(path)
