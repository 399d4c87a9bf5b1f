"""Owns the compile cache: one committed set in the store for each program, rank and constants.

MindSpore keys its cache by the order of compilation within a process, finds weights by name, and
does not notice a changed constant (measured). So a key hashes everything that is baked into any
of a program's graphs, a program compiles all of them in a fixed order at its start, and a set is
complete or absent. Must not be trusted with anything that may change between runs: that is a
Parameter or an argument.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobs import commits, layout, versions
from jobs.environment import Environment, Worker
from jobs.errors import BadData
from jobs.stores import Store, open_store, sha256_of

log = logging.getLogger("jobs.graphs")

SOURCES = (
    "cells.py", "compat.py", "dropout.py", "infer.py", "lora.py", "losses.py", "methods.py",
    "model.py", "norms.py", "reduction.py", "sampling.py", "step.py", "train.py", "update.py",
)  # fmt: skip
"""Modules whose text decides a graph or the order of graphs."""
OWN_KEY = "key"
"""File of a set that says whose graphs they are: MindSpore would run a foreign one's silently."""


def key(program: str, env: Environment, worker: Worker, constants: dict[str, object]) -> str:
    """Return the content key of a program's graphs on one rank."""
    here = Path(__file__).parent
    parts = {
        "program": program,
        "sources": {name: sha256_of(here / name) for name in SOURCES},
        "versions": versions.all_there(),
        "machine": platform.machine(),
        "device": env.device,
        "threads": env.threads,
        "world": worker.world,
        "rank": worker.rank,
        "constants": constants,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Graphs:
    """The compile cache of this process: a private folder, filled from the store if it can be."""

    store: Store
    prefix: str
    folder: Path
    warm: bool

    def publish(self) -> None:
        """Make the graphs of a cold start available to later runs; a failure is only told."""
        if self.warm:
            return
        try:
            (self.folder / OWN_KEY).write_text(self.prefix, encoding="utf-8")
            commits.commit(self.store, self.prefix, self.folder)
        except OSError as error:
            log.warning("graphs=not-kept error=%r", str(error))


def open_cache(
    program: str, env: Environment, worker: Worker, constants: dict[str, object]
) -> Graphs:
    """Point MindSpore at this program's cache; call it before the first graph is compiled."""
    store = open_store(env.store, env.access)
    prefix = f"{layout.CACHE}/graphs/{key(program, env, worker, constants)}"
    folder = env.work / "graphs" / str(worker.rank)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    warm = False
    try:
        commits.download(store, prefix, folder)
        _check(folder, prefix)
        warm = True
    except (BadData, OSError, ValueError) as error:
        if commits.is_committed(store, prefix):
            log.warning("graphs=ignored error=%r", str(error))
        shutil.rmtree(folder)  # part of a damaged set would be published with the new graphs
        folder.mkdir()
    os.environ["MS_COMPILER_CACHE_ENABLE"] = "1"
    os.environ["MS_COMPILER_CACHE_PATH"] = str(folder)
    state = "warm" if warm else "cold; compiling, which is silent for minutes"
    log.info("graphs=%s key=%s", state, prefix.rpartition("/")[2])
    return Graphs(store, prefix, folder, warm)


def _check(folder: Path, prefix: str) -> None:
    """Make sure that a set, which is whole, was made for this place: one may have been copied.

    Raises:
        BadData: it was made for another one, or does not say for which.
    """
    path = folder / OWN_KEY
    found = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "nothing"
    if found != prefix:
        raise BadData(f"{prefix}: holds the graphs of {found:.80}")
