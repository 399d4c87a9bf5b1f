"""Owns the hand-over from workers to uploader: a folder where finished things appear whole.

    <work>/outbox/checkpoints/step-00000500/   a set, appears by rename
                  images/00001-00.png          then rows/00001-00.json, its manifest row
                  metrics.jsonl, result.json   records, replaced or appended to
    <work>/done, <work>/stop, <work>/alive/<rank>, <work>/reasons/<rank>

Must not talk to a store or know MindSpore.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import layout
from jobs.stores import durable

FULL_BYTES = 1 << 20
"""With less than that left a disk is full: the last write that fits leaves a little."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, and survives a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    part.write_bytes(data)
    durable(part)
    part.replace(path)


@dataclass(frozen=True, slots=True)
class Outbox:
    """The paths of one attempt's work directory."""

    work: Path

    @property
    def root(self) -> Path:
        """Where finished things appear."""
        return self.work / "outbox"

    @property
    def stop(self) -> Path:
        """Exists when the workers are asked to stop."""
        return self.work / "stop"

    @property
    def done(self) -> Path:
        """Exists when the workers have ended and nothing new will appear."""
        return self.work / "done"

    @property
    def uploads(self) -> Path:
        """Part tables of interrupted uploads; outlive the attempt."""
        return self.work / "uploads"

    @property
    def rate(self) -> Path:
        """Bytes and seconds of the newest commit, which the next one is expected to take too."""
        return self.work / "upload-rate.json"

    @property
    def away(self) -> Path:
        """Exists while the store is away: since when (s since the epoch), and why."""
        return self.work / "store-away"

    def draft(self, step: int) -> Path:
        """Return an empty folder to write a checkpoint into, invisible to the uploader."""
        folder = self.work / "drafts" / layout.step_name(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(self, draft: Path) -> None:
        """Flush a draft and hand it over."""
        for path in draft.rglob("*"):
            durable(path)
        target = self.root / layout.CHECKPOINTS / draft.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        durable(target.parent)

    def picture(self, name: str, data: bytes, row: dict[str, object]) -> None:
        """Hand over a picture; its manifest row, with file and digest added, comes last."""
        write_whole(self.root / layout.IMAGES / name, data)
        digest = hashlib.sha256(data).hexdigest()
        whole = {**row, "file": f"{layout.IMAGES}/{name}", "sha256": digest, "bytes": len(data)}
        write_whole(self.root / "rows" / f"{name}.json", json.dumps(whole).encode())

    def append(self, record: str, row: dict[str, object]) -> None:
        """Append one row to a JSON-lines record."""
        path = self.root / record
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def beat(self, rank: int) -> None:
        """Tell the supervisor that this worker is alive and working."""
        path = self.work / "alive" / str(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def end(self, rank: int) -> None:
        """Tell the supervisor that this worker has handed over all it had to."""
        write_whole(self.work / "ended" / str(rank), b"")

    def ended(self) -> set[int]:
        """Return the ranks that have got to their end."""
        return {int(path.name) for path in (self.work / "ended").glob("[0-9]*")}

    def fail(self, rank: int, code: int, reason: str) -> None:
        """Tell the supervisor why this worker ends: msrun turns every exit code into 1."""
        write_whole(self.work / "reasons" / str(rank), f"{code} {reason}".encode())

    def summarise(self, rank: int, summary: dict[str, object]) -> None:
        """Tell the supervisor what this worker has done; it makes the run's result of them."""
        write_whole(self.work / "summaries" / f"{rank}.json", json.dumps(summary).encode())

    def summaries(self) -> list[dict[str, Any]]:
        """Return the workers' summaries in order of rank."""
        paths = sorted((self.work / "summaries").glob("[0-9]*.json"), key=lambda p: int(p.stem))
        return [json.loads(path.read_bytes()) for path in paths]

    def no_space(self) -> str:
        """Return what to say of a full disk, which keeps reasons and logs from being written."""
        full = shutil.disk_usage(self.work).free < FULL_BYTES
        return f"No space left on device: {self.work}" if full else ""

    def reasons(self) -> list[tuple[int, str]]:
        """Return (exit code, reason) of each worker that gave one, in order of rank."""
        found = []
        for path in sorted((self.work / "reasons").glob("[0-9]*"), key=lambda p: int(p.name)):
            code, _, reason = path.read_text(encoding="utf-8").partition(" ")
            found.append((int(code), reason))
        return found
